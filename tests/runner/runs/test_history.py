"""Tests of reading a run through its target: record, samples, log, cost, and files that grow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from runner.runs import history
from runner.runs.attempts import AttemptLog, CloudAttempt, parse_log
from runner.runs.history import (
    HistoryReader,
    TailReader,
    flatten_recipe,
    format_results,
    results,
)
from runner.runs.metrics import Axis
from runner.runs.table import step_text
from runner.target import LocalVolume, RunInfo
from runner.views.charts import ticks
from tests.runner.fake_run import fill_run

STATE = RunInfo("warm", "train", "host", "running", alive=True, step=100, max_steps=100)


@pytest.fixture
def folder(make_run, fake) -> Path:
    fake.states = [STATE]
    return make_run("warm", step=100)


def test_the_newest_sample_or_all(folder: Path, fake) -> None:
    fill_run(folder, sample="newest")
    read = HistoryReader("warm", fake).poll()
    assert [(sample.step, sample.text) for sample in read.samples] == [("100", "newest")]
    reader = HistoryReader("warm", fake, all_samples=True)
    assert [sample.step for sample in reader.poll().samples] == ["50", "100"]
    (folder / "samples" / "step_00000100.txt").write_text("written again")
    assert reader.poll().samples[-1].text == "written again"


def test_a_file_named_samples_has_no_samples(folder: Path, fake) -> None:
    (folder / "samples").write_text("of a command")
    assert HistoryReader("warm", fake).poll().samples == ()


def test_a_job_without_a_log_shows_its_output(folder: Path, fake) -> None:
    fake.printed = ["ImportError: \x1b[31mtorch"]
    reader = HistoryReader("warm", fake)
    assert reader.poll().log == ("ImportError: ·[31mtorch",)
    (folder / "log.txt").write_text("began\n")
    assert reader.poll().log == ("began",)


def test_the_cost_limit_of_the_launch(folder: Path, fake) -> None:
    launch = {"run": "warm", "target": "cloud", "job": "train", "id": "fc", "started": 1.0}
    (folder / "launch.json").write_text(
        json.dumps({**launch, "target_options": {"gpu": "H100", "max_cost": 12.5}})
    )
    assert HistoryReader("warm", fake).poll().max_cost == 12.5
    (folder / "launch.json").write_text(
        json.dumps({**launch, "target_options": {"max_cost": "much"}})
    )
    assert HistoryReader("warm", fake).poll().max_cost is None


def test_a_resumed_run_has_one_curve(folder: Path, fake) -> None:
    fill_run(folder, steps=100)
    reader = HistoryReader("warm", fake)
    assert reader.poll().metrics.step == 100
    kept = [
        line
        for line in (folder / "metrics.jsonl").read_text().splitlines()
        if json.loads(line)["step"] <= 60
    ]
    (folder / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    metrics = reader.poll().metrics
    assert (metrics.step, len(metrics.curves["loss"]), metrics.seconds) == (60, 60, 30.0)


def test_a_removed_run_is_none(folder: Path, fake) -> None:
    reader = HistoryReader("warm", fake)
    fake.states = [replace(STATE, run="other")]
    assert reader.poll() is None


@pytest.mark.parametrize("text", [None, b"", b"[1, 2]", b"\xff\xfe", b"a: [", b"a: &a [*a]"])
def test_a_damaged_recipe_is_empty(text: bytes | None) -> None:
    assert set(flatten_recipe(text)) <= {"a"}


@pytest.mark.parametrize(
    ("most", "axis", "places"),
    [
        (1850, "step", [0, 500, 1000, 1500]),
        (2e6, "tokens", [0, 5e5, 1e6, 1.5e6, 2e6]),
        (390, "time", [0, 120, 240, 360]),
        (100_000, "time", [0, 21600, 43200, 64800, 86400]),
        (0, "step", [0]),
    ],
)
def test_ticks_of_an_axis_are_round(most: float, axis: Axis, places: list[float]) -> None:
    assert ticks(most, axis) == places


def test_arguments_of_an_experiment_and_of_a_command(folder: Path, fake) -> None:
    (folder / "recipe.yaml").unlink()
    tree = {
        "name": "warm",
        "arguments": {"lr": 0.1},
        "result": {"accuracy": 0.91234, "table": [1, 2]},
    }
    (folder / "run.json").write_text(json.dumps(tree))
    read = HistoryReader("warm", fake).poll()
    assert read.recipe == {"lr": 0.1}
    assert format_results(results(read))["accuracy"] == "0.9123"
    (folder / "run.json").write_text(
        json.dumps({"name": "warm", "command": ["python", "train.py", "a b"]})
    )
    assert HistoryReader("warm", fake).poll().recipe == {"command": "python train.py 'a b'"}


def test_step_zero_is_a_step(make_run, fake) -> None:
    """A run that only evaluates pretrained weights has no other step."""
    folder = make_run("gpt2", step=0, max_steps=0)
    (folder / "metrics.jsonl").write_text('{"kind": "val", "step": 0, "loss": 3.5}\n')
    (folder / "samples").mkdir()
    (folder / "samples" / "step_00000000.txt").write_text("To be")
    fake.states = [RunInfo("gpt2", "train", "host", "finished", loss=3.5)]
    read = HistoryReader("gpt2", fake).poll()
    texts = format_results(results(read))
    assert (texts["step"], texts["best validation"]) == ("0", "3.5000 at 0")
    assert [sample.step for sample in read.samples] == ["0"]
    assert step_text(fake.states[0]) == "0/0"
    assert step_text(RunInfo("test", "command", "host", "finished")) == "-"


def test_killed_attempt_counts_until_it_was_last_seen() -> None:
    log = AttemptLog()
    log.begin(CloudAttempt("fc-1", "ta-1", 0.0, 600.0, 6.0), "ap-1")
    log.begin(CloudAttempt("fc-1", "ta-2", 1000.0, 1000.0, 6.0), "ap-1")
    log.end_attempt("finished", 0, 1600.0)
    assert [attempt.reason for attempt in log.attempts] == ["killed", "finished"]
    assert log.seconds(2000.0) == 1200.0
    assert log.cost(2000.0) == pytest.approx(2.0)
    assert parse_log(log.dumps()) == log


@pytest.mark.parametrize("text", ["{half", None, "[1]"])
def test_an_invalid_log_of_attempts_is_empty(text: str | None) -> None:
    assert parse_log(text) == AttemptLog()


class CountingFiles(LocalVolume):
    """Files that count the bytes read from them."""

    count: ClassVar[list[int]] = [0]

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        text = super().read(path, start, length)
        self.count[0] += len(text)
        return text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def file(tmp_path: Path) -> TailReader:
    return TailReader(LocalVolume(tmp_path), "metrics.jsonl")


def test_a_missing_file_has_no_lines(file: TailReader, path: Path) -> None:
    assert file.poll().lines == ()
    path.write_text("one\n")
    assert file.poll().lines == (b"one",)


def test_a_partial_line_waits_for_its_end(file: TailReader, path: Path) -> None:
    path.write_text("one\ntw")
    assert file.poll().lines == (b"one",)
    assert file.poll().lines == ()
    with path.open("a") as out:
        out.write("o\nthree\n")
    assert file.poll().lines == (b"two", b"three")


def test_a_poll_reads_only_new_bytes(tmp_path: Path, path: Path) -> None:
    files = CountingFiles(tmp_path)
    file = TailReader(files, "metrics.jsonl")
    path.write_text("a line\n" * 100_000)
    file.poll()
    files.count[0] = 0
    with path.open("a") as out:
        out.write("another\n")
    assert file.poll().lines == (b"another",)
    assert files.count[0] < 2 * history.OVERLAP_BYTES


@pytest.mark.parametrize("more", [0, 1, 5000])
def test_a_rewritten_file_is_read_from_its_start(file: TailReader, path: Path, more: int) -> None:
    path.write_text("".join(f"step {i} first attempt\n" for i in range(1000)))
    assert len(file.poll().lines) == 1000
    kept = [f"step {i} first attempt\n" for i in range(900)]
    path.write_text("".join([*kept, *(f"step {900 + i} second attempt\n" for i in range(more))]))
    piece = file.poll()
    assert (piece.restarted, len(piece.lines)) == (True, 900 + more)
    assert not file.poll().restarted


def test_a_long_file_takes_several_polls(
    file: TailReader, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_POLL_BYTES", 1000)
    path.write_text("".join(f"{i}\n" for i in range(1000)))
    lines: list[bytes] = []
    while not (piece := file.poll()).is_complete:
        assert not piece.restarted
        lines += piece.lines
    assert [*lines, *piece.lines] == [str(i).encode() for i in range(1000)]


def test_only_the_end_of_a_log_is_read(tmp_path: Path, path: Path) -> None:
    path.write_text("".join(f"{i:04d}\n" for i in range(1000)))
    file = TailReader(LocalVolume(tmp_path), "metrics.jsonl", max_bytes=50)
    assert file.poll().lines[-1] == b"0999"
    assert len(file.poll().lines) == 0
    with path.open("a") as out:
        out.write("1000\n")
    assert file.poll().lines == (b"1000",)
