"""Tests of durations and amounts: parsed from options, and printed."""

from __future__ import annotations

import pytest

from job import format
from job.exit_status import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("12h", 43200), ("3d", 259200), ("1.5h", 5400)]
)
def test_parse_duration(text: str, seconds: float) -> None:
    assert format.parse_duration(text, "--timeout") == seconds


@pytest.mark.parametrize("text", ["12", "h", "-1h", "0h", "1w"])
def test_parse_duration_refuses(text: str) -> None:
    expected = "write 12m, 12h or 12d" if text == "12" else "90m, 12h or 3d"
    with pytest.raises(UsageError, match=expected):
        format.parse_duration(text, "--timeout")


def test_parse_dollars() -> None:
    assert (
        format.parse_dollars("$25", "--max-cost")
        == format.parse_dollars("25.0", "--max-cost")
        == 25.0
    )
    for text in ("0", "-1", "nan", "lots"):
        with pytest.raises(UsageError):
            format.parse_dollars(text, "--max-cost")


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0.0, "$0.00"), (0.0001, "$0.0001"), (0.00416, "$0.0042"), (0.01, "$0.01"), (25, "$25.00")],
)
def test_small_dollars_keep_their_digits(amount: float, text: str) -> None:
    assert format.dollars(amount) == text
