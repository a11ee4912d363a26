"""A run that ended is not active, even if its heartbeat is fresh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from runner.runs.attempts import AttemptLog, CloudAttempt
from runner.target import RunInfo
from tests.runner.transfer.conftest import Cloud, write_run

Invoke = Callable[[str], Result]


@pytest.mark.parametrize(
    ("status", "over", "active"),
    [
        ("running", False, True),
        ("unfinished", False, True),  # preempted: it restarts elsewhere
        ("unfinished", True, False),
        ("finished", True, False),
        ("failed", True, False),
    ],
)
def test_record_decides_whether_a_run_is_active(
    status: str, over: bool, active: bool, invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    folder = write_run(cloud.folder("checkpoints") / "warm", [10], status=status)
    log = AttemptLog([CloudAttempt("fc-1", "ta-1", 1.0, 2.0, 4.2)], "fc-1")
    if over:
        log.end_call(0, status)
    (folder / "cloud.json").write_text(log.dumps())
    write_run(local / "checkpoints/warm", [20])
    assert ("run warm is active" in invoke("runner rm checkpoints warm -r").stderr) is active
    assert (
        "run warm is active on Modal" in invoke("runner push checkpoints warm").stderr
    ) is active


class FakeModal:
    """Modal whose only call is alive."""

    def state(self, run: str) -> RunInfo:
        return RunInfo(run, "train", "cloud", "running", alive=True)


def test_run_with_a_live_call_is_active_without_a_fresh_heartbeat(
    invoke: Invoke, cloud: Cloud, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(cloud.folder("checkpoints") / "warm", [10], status="running")
    cloud.age("checkpoints")
    write_run(local / "checkpoints/warm", [20])
    monkeypatch.setattr("runner.transfer.mapping.open_target", lambda *args: FakeModal())
    for line in ("push checkpoints warm", "rm checkpoints warm -r", "rm checkpoints warm/log.txt"):
        result = invoke(f"runner {line}")
        assert result.exit_code == 2
        assert "run warm is active on Modal" in result.stderr
