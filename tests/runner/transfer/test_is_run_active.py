"""A run on Modal is active if its call is alive, whatever the age of its heartbeat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from runner.target import RunInfo
from runner.targets.modal.target import ModalTarget
from tests.runner.transfer.conftest import Cloud, write_run

Invoke = Callable[[str], Result]


class FakeModal:
    """Modal whose only call is alive, or has ended."""

    def __init__(self, alive: bool) -> None:
        self.alive = alive

    def state(self, run: str) -> RunInfo:
        return RunInfo(run, "train", "cloud", "running", alive=self.alive)


@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize("is_fresh", [True, False])
def test_the_call_decides_whether_a_run_is_active(
    alive: bool,
    is_fresh: bool,
    invoke: Invoke,
    cloud: Cloud,
    local: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_run(cloud.folder("checkpoints") / "warm", [10], status="running")
    if not is_fresh:
        cloud.age("checkpoints")
    write_run(local / "checkpoints/warm", [20])
    fake = FakeModal(alive)
    monkeypatch.setattr(ModalTarget, "state", lambda self, run: fake.state(run))
    lines = ("rm checkpoints warm -r", "rm checkpoints warm/log.txt", "push checkpoints warm")
    for line in lines:
        result = invoke(f"runner {line}")
        assert ("run 'warm' is active on Modal" in result.stderr) is alive
        assert (result.exit_code, line) == (2 if alive or line.startswith("rm") else 0, line)
