"""Durations, sizes and JSON as text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from job.exit_status import UsageError
from job.format import (
    byte_size,
    count,
    dollars,
    duration,
    json_text,
    number,
    parse_dollars,
    parse_duration,
    sanitize,
)
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


def test_numbers() -> None:
    numbers = [number(n) for n in (0.5, 950, 12500, 3.2e6, 1.1e9)]
    assert numbers == ["0.5", "950", "12.5k", "3.2M", "1.1B"]


def test_control_characters_are_replaced() -> None:
    assert sanitize("a\x1b[2Jb\r\u202ec\u00a0d\te\n") == "a·[2Jb ·c d\te\n"
    assert sanitize(b"\xff ok") == "\N{REPLACEMENT CHARACTER} ok"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("12h", 43200), ("3d", 259200), ("1.5h", 5400)]
)
def test_parse_duration(text: str, seconds: float) -> None:
    assert parse_duration(text, "--timeout") == seconds


@pytest.mark.parametrize("text", ["12", "h", "-1h", "0h", "1w"])
def test_parse_duration_refuses(text: str) -> None:
    expected = "write 12m, 12h or 12d" if text == "12" else "90m, 12h or 3d"
    with pytest.raises(UsageError, match=expected):
        parse_duration(text, "--timeout")


def test_parse_dollars() -> None:
    assert [parse_dollars(text, "--max-cost") for text in ("$25", "25.0")] == [25.0, 25.0]
    for text in ("0", "-1", "nan", "lots"):
        with pytest.raises(UsageError):
            parse_dollars(text, "--max-cost")


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0.0, "$0.00"), (0.0001, "$0.0001"), (0.00416, "$0.0042"), (0.01, "$0.01"), (25, "$25.00")],
)
def test_small_dollars_keep_their_digits(amount: float, text: str) -> None:
    assert dollars(amount) == text
