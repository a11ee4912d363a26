"""Tests of the deadlines of an attempt."""

from __future__ import annotations

import pytest

from runner.targets.modal import deadlines


def test_modals_limit_is_an_attempt_timeout() -> None:
    found = deadlines.next_deadline(0.0, 86400.0, 3 * 86400.0, 0.0, None, 0.0, 1.0)
    assert (found.reason, found.stop, found.kill) == ("attempt-timeout", 86100.0, 86400.0)


def test_timeout_deducts_earlier_attempts() -> None:
    found = deadlines.next_deadline(1000.0, 86400.0, 7200.0, 3600.0, None, 0.0, 1.0)
    assert (found.reason, found.stop, found.kill) == ("run-timeout", 4300.0, 4600.0)


def test_budget_deducts_earlier_attempts() -> None:
    found = deadlines.next_deadline(0.0, 86400.0, 86400.0, 0.0, 25.0, 5.0, 10.0)
    assert (found.reason, found.kill) == ("budget", 7200.0)
    spent = deadlines.next_deadline(0.0, 86400.0, 86400.0, 0.0, 25.0, 26.0, 10.0)
    assert spent.stop <= 0.0


@pytest.mark.parametrize(
    ("hours", "seconds", "room"),
    [
        (5.0, 2.0, 8.0),  # a small network stops seconds before the end, not 5 minutes
        (5.0, 80.0, 242.0),
        (
            5.0,
            900.0,
            300.0,
        ),  # longer writes would be lost in any case: Modal's grace is shorter
        (0.01, 0.9, 3.6),  # 36 seconds: a tenth
        (0.01, 3.0, 9.0),  # more than a tenth, if stopping takes more
    ],
)
def test_margin_follows_the_measured_stopping_time(
    hours: float, seconds: float, room: float
) -> None:
    first = deadlines.Deadline(0.0, 1000.0 + hours * 3600, "budget")
    found = deadlines.with_measured_margin(first, 1000.0, seconds)
    assert found.kill - found.stop == pytest.approx(room)
    assert (found.kill, found.reason) == (first.kill, "budget")


def test_run_deadline_precedes_modals_limit() -> None:
    for used in (0.0, 100.0, 80000.0):
        each = deadlines.attempt_timeout(86400.0, used, deadlines.MAX_ATTEMPT_S)
        found = deadlines.next_deadline(0.0, each, 86400.0, used, None, 0.0, 1.0)
        assert found.stop < found.kill <= each
        assert found.reason == "run-timeout"  # no attempt follows for the last minutes
