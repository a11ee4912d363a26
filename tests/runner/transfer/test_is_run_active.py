"""A run that ended a moment ago is not at work, however fresh its heartbeat is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from runner.runs.attempts import AttemptLog, CloudAttempt
from tests.runner.transfer.conftest import Cloud, write_run

Type = Callable[[str], Result]


@pytest.mark.parametrize(
    ("status", "over", "at_work"),
    [
        ("running", False, True),
        ("unfinished", False, True),  # taken from its machine, it goes on on another
        ("unfinished", True, False),
        ("finished", True, False),
        ("failed", True, False),
    ],
)
def test_the_record_is_believed(
    status: str, over: bool, at_work: bool, type_: Type, cloud: Cloud, here: Path
) -> None:
    folder = write_run(cloud.folder("checkpoints") / "warm", [10], status=status)
    ledger = AttemptLog([CloudAttempt("fc-1", "ta-1", 1.0, 2.0, 4.2)], "fc-1")
    if over:
        ledger.end_call(0, status)
    (folder / "cloud.json").write_text(ledger.dumps())
    write_run(here / "checkpoints/warm", [20])
    assert ("run warm is at work" in type_("runner rm checkpoints warm -r").stderr) is at_work
    assert (
        "run warm is at work in the cloud" in type_("runner push checkpoints warm").stderr
    ) is at_work
