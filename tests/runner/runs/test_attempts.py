"""Tests of the record of attempts, ``cloud.json``."""

from __future__ import annotations

import pytest

from runner.runs import attempts


def test_killed_attempt_counts_until_it_was_last_seen() -> None:
    book = attempts.AttemptLog()
    book.begin(attempts.CloudAttempt("fc-1", "ta-1", 0.0, 600.0, 6.0), "ap-1")
    book.begin(attempts.CloudAttempt("fc-1", "ta-2", 1000.0, 1000.0, 6.0), "ap-1")
    book.end_attempt("finished", 0, 1600.0)
    assert [a.reason for a in book.attempts] == ["killed", "finished"]
    assert book.seconds(2000.0) == 1200.0
    assert book.cost(2000.0) == pytest.approx(2.0)
    again = attempts.parse_log(book.dumps())
    assert again == book


def test_invalid_log_is_empty() -> None:
    assert (
        attempts.parse_log("{half")
        == attempts.parse_log(None)
        == attempts.parse_log("[1]")
        == attempts.AttemptLog()
    )
