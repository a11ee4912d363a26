"""Tests of reading a run through its target: record, samples, log, cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from job.format import dollars, number, sanitize
from runner.runs.history import HistoryReader, flatten_recipe, format_results, results
from runner.runs.metrics import Axis
from runner.runs.table import step_text
from runner.target import RunInfo
from runner.views.charts import ticks
from tests.runner.fake_run import fill_run

STATE = RunInfo("warm", "train", "host", "running", alive=True, step=100, max_steps=100)


@pytest.fixture
def folder(make_run, fake) -> Path:
    fake.states = [STATE]
    return make_run("warm", step=100)


def test_the_newest_sample_or_all(folder: Path, fake) -> None:
    fill_run(folder, sample="newest")
    history = HistoryReader("warm", fake).poll()
    assert [(sample.step, sample.text) for sample in history.samples] == [("100", "newest")]
    reader = HistoryReader("warm", fake, all_samples=True)
    assert [sample.step for sample in reader.poll().samples] == ["50", "100"]
    (folder / "samples" / "step_00000100.txt").write_text("written again")
    assert reader.poll().samples[-1].text == "written again"


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


def test_control_characters_are_replaced() -> None:
    assert sanitize("a\x1b[2Jb\r\u202ec\u00a0d\te\n") == "a·[2Jb ·c d\te\n"
    assert sanitize(b"\xff ok") == "\N{REPLACEMENT CHARACTER} ok"


def test_numbers() -> None:
    assert [number(n) for n in (0.5, 950, 12500, 3.2e6, 1.1e9)] == [
        "0.5",
        "950",
        "12.5k",
        "3.2M",
        "1.1B",
    ]
    assert [dollars(n) for n in (0, 0.0034, 0.42, 25)] == ["$0.00", "$0.0034", "$0.42", "$25.00"]


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
    history = HistoryReader("warm", fake).poll()
    assert history.recipe == {"lr": 0.1}
    assert format_results(results(history))["accuracy"] == "0.9123"
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
    history = HistoryReader("gpt2", fake).poll()
    words = format_results(results(history))
    assert (words["step"], words["best validation"]) == ("0", "3.5000 at 0")
    assert [sample.step for sample in history.samples] == ["0"]
    assert step_text(fake.states[0]) == "0/0"
    assert step_text(RunInfo("test", "command", "host", "finished")) == "-"
