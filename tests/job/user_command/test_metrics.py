"""Metrics of a command, read from its output and its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from job.run_record import read_record
from job.user_command import metric_sources
from job.user_command.metric_recorder import kind_and_key
from job.user_command.metric_sources import OutputMetrics
from tests.job.user_command.test_supervisor import Start, folder, output_of, start, volumes

__all__ = ["folder", "start", "volumes"]  # fixtures

PATTERNS = {"step": r"iter (\d+)", "loss": r"loss (\S+?),", "val_loss": r"val loss (\S+)"}

PRINTS = """
import sys
for i in range(int(sys.argv[1]), int(sys.argv[2])):
    print(f"iter {i}: loss {10 - i}.5,", end="\\r" if i % 2 else "\\n")
print(f"iter {i}: val loss {sys.argv[3]}")
"""


@pytest.fixture
def lines(volumes: Path) -> Callable[[], list[tuple[str, int, float | None]]]:
    def read() -> list[tuple[str, int, float | None]]:
        text = (volumes / "checkpoints" / "r" / "metrics.jsonl").read_text()
        rows = map(json.loads, text.splitlines())
        return [(row["kind"], row["step"], row["loss"]) for row in rows]

    return read


@pytest.fixture
def patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = {"command": {"words": ["x"], "metrics": [[*item] for item in PATTERNS.items()]}}
    monkeypatch.setenv("RUN_LAUNCH", json.dumps(launch))


def test_a_resumed_command_has_each_step_once(
    start: Start, lines, volumes: Path, patterns: None
) -> None:
    output_of(start("python", "-c", PRINTS, "0", "5", "2.0"))
    output_of(start("python", "-c", PRINTS, "3", "6", "nan"))
    assert lines() == [
        *[("train", step, 10.5 - step) for step in range(6)],
        ("val", 5, None),
    ]
    record = read_record(volumes / "checkpoints" / "r")
    assert record is not None
    assert (record.step, record.train_loss, record.best_val_loss) == (5, 5.5, None)
    assert record.result == {"exit_status": 0, "loss": 5.5, "val_loss": None}
    assert (volumes / "checkpoints" / "r" / "tensorboard").is_dir()


def test_files_in_persisted_paths_win_over_the_output(
    start: Start, lines, volumes: Path, patterns: None
) -> None:
    program = """
import os, json
from torch.utils.tensorboard import SummaryWriter
print("iter 1: loss 9.0,", flush=True)
os.makedirs("logs/run", exist_ok=True)
with SummaryWriter("logs/run") as board:
    board.add_scalar("eval/loss", 3.0, 20)
with open("logs/metrics.jsonl", "a") as file:
    file.write(json.dumps({"_step": 10, "train/loss": 4.0, "note": "x"}) + "\\n" + "damaged")
"""
    persisted = volumes / "checkpoints" / "kept"
    persisted.mkdir(parents=True)
    (persisted / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n')  # of a different run
    output_of(start("python", "-c", program, options=(f"--persist=logs={persisted}",)))
    assert lines() == [("train", 10, 4.0), ("val", 20, 3.0)]


def test_metrics_file_of_the_command_is_not_changed(
    start: Start, volumes: Path, patterns: None
) -> None:
    text = '{"step": 7, "kind": "val", "loss": 2.5}\n'
    program = f"import os; open(os.environ['OUT_DIR'] + '/metrics.jsonl', 'w').write({text!r})"
    output_of(start("python", "-c", program + "; print('iter 1: loss 9.0,')"))
    run = volumes / "checkpoints" / "r"
    assert (run / "metrics.jsonl").read_text() == text
    record = read_record(run)
    assert record is not None
    assert (record.step, record.val_loss) == (7, 2.5)


def test_only_the_first_machine_keeps_the_record(
    start: Start, volumes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_RANK", "1")
    run = volumes / "checkpoints" / "r"
    assert output_of(start("echo", "$OUT_DIR/x")) == f"{run}/x\n"
    assert not run.exists()


def test_steps_of_epochs_add_up() -> None:
    metrics = OutputMetrics({"step": r"(\d+)/", "loss": r"loss=(.*)"})
    metrics.add("pipe", b"40/100 loss=3\r90/100 lo")
    metrics.add("other", b"noise\n")
    metrics.add("pipe", b"ss=2\n40/100 loss=1,000\nloss=85%\n")
    assert [(row.step, row.values["loss"]) for row in metrics.rows()] == [
        (40, 3.0), (90, 2.0), (130, 1000.0), (130, 0.85),
    ]  # fmt: skip


def test_an_expression_that_takes_too_long_is_ignored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metric_sources, "SEARCH_LIMIT_S", 0.05)
    metrics = OutputMetrics({"slow": r"((a|aa)+)+c", "loss": r"loss=(.*)"})
    metrics.add("pipe", b"%s!\nloss=2\n" % (b"a" * 60))
    metrics.add("pipe", b"%s!\nloss=1\n" % (b"a" * 60))
    assert [row.values for row in metrics.rows()] == [{"loss": 2.0}, {"loss": 1.0}]
    assert capsys.readouterr().err.count("--metric slow: its expression takes more than") == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loss", ("train", "loss")),
        ("eval_loss", ("val", "loss")),
        ("Loss/validation", ("val", "loss")),
        ("train/learning_rate", ("train", "lr")),
        ("val_bpb", ("val", "bpb")),
        ("tokens_per_second", ("train", "tokens_per_second")),
    ],
)
def test_names_of_other_programs(name: str, expected: tuple[str, str]) -> None:
    assert kind_and_key(name) == expected
