"""Durations, sizes and JSON as text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from job.format import byte_size, count, duration, json_text
from job.metrics import Metrics
from job.run_record import RunRecord


def test_times() -> None:
    times = [duration(seconds) for seconds in (0.4, 59.6, 3599, 3600, 90000, -5)]
    assert times == ["0s", "1m00s", "59m59s", "1h00m", "1d01h", "0s"]


def test_sizes() -> None:
    sizes = [byte_size(size) for size in (0, 999, 1000, 1_550_000, 10**9, 3 * 10**12)]
    assert sizes == ["0 bytes", "999 bytes", "1 kB", "1.6 MB", "1.0 GB", "3.0 TB"]


def test_counts() -> None:
    assert [count(1, "file"), count(2000, "file")] == ["1 file", "2,000 files"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_has_null_for_a_number_that_json_cannot_represent(value: float) -> None:
    tree = {"loss": value, "rows": [{"loss": (value, 1.5)}], "step": 3}
    read = json.loads(json_text(tree), parse_constant=pytest.fail)
    assert read == {"loss": None, "rows": [{"loss": [None, 1.5]}], "step": 3}


def test_the_files_of_a_diverged_run_are_valid_json(tmp_path: Path) -> None:
    RunRecord("r", train_loss=math.inf, val_loss=math.nan).write(tmp_path)
    metrics = Metrics(tmp_path, 0, print)
    metrics.log("val", 1, loss=math.nan)
    metrics.close()
    for name in ("run.json", "metrics.jsonl"):
        tree = json.loads((tmp_path / name).read_text(), parse_constant=pytest.fail)
        assert tree.get("val_loss", tree.get("loss")) is None
