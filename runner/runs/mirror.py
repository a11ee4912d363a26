"""Runs of the cloud as their folders on this machine tell of them: offline, without an account, or deleted there.

It answers as a target does for whatever looks at a run, and starts and stops nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from job.run_record import RunRecord, read_record
from runner.console import CliContext
from runner.errors import RunnerError
from runner.plan import Plan, TargetState
from runner.project import find_checkout, volumes
from runner.request import Request
from runner.runs import attempts
from runner.runs.store import folders, read_launch
from runner.target import LaunchHandle, LocalVolume, RunInfo, VolumeFiles
from runner.targets.modal.calls import CallState
from runner.targets.modal.runs import CloudRun, state_of


class MirroredRuns:
    """The runs in ``checkpoints`` whose last attempt was in the cloud."""

    name = "copy"
    poll_interval_s = 1.0

    def __init__(self, checkpoints: Path) -> None:
        self.checkpoints = checkpoints

    def state(self, run: str) -> RunInfo | None:
        """How it stood when it was pulled; None where it was not."""
        folder = self.checkpoints / run
        record, launch = read_record(folder), read_launch(folder)
        if record is None:
            return None
        of_cloud = launch if launch is not None and launch.target == "cloud" else None
        found = CloudRun(run, record, of_cloud, attempts.read(folder))
        if not found.is_of_cloud:
            return None
        state = state_of(found, lambda call: CallState(False))
        status = state.status if found.ledger.status is not None else record.status
        return replace(
            state, status=status, folder=str(folder), is_copy=True, seen=_last_seen(found, record)
        )

    def runs(self) -> Iterable[RunInfo]:
        """Every run that was pulled."""
        states = (self.state(folder.name) for folder in folders(self.checkpoints))
        return [state for state in states if state is not None]

    def output(self, run: str, lines: int) -> list[str]:
        """Nothing: what it printed outside its log is not pulled."""
        return []

    def files(self, volume: str) -> VolumeFiles:
        """The checkpoints."""
        return LocalVolume(self.checkpoints)

    def launched(self, run: str) -> LaunchHandle | None:
        """What was started in the cloud."""
        return read_launch(self.checkpoints / run)

    def facts(self, request: Request) -> TargetState:
        """Raises RunnerError."""
        _refuse(request.run)

    def plan(self, request: Request, facts: TargetState) -> Plan:
        """Raises RunnerError."""
        _refuse(request.run)

    def start(self, plan: Plan) -> LaunchHandle:
        """Raises RunnerError."""
        _refuse(plan.run)

    def follow(self, started: LaunchHandle) -> int:
        """Raises RunnerError."""
        _refuse(started.run)

    def stop(self, run: str, now: bool = False) -> bool:
        """Raises RunnerError."""
        _refuse(run)


def _last_seen(run: CloudRun, record: RunRecord) -> float | None:
    """When it was last at work, as far as was pulled; None where nothing tells."""
    if run.ledger.attempts:
        return run.ledger.attempts[-1].seen
    return (
        record.attempts[-1].started
        if record.attempts
        else run.launch.started
        if run.launch
        else None
    )


def mirrored_runs(cli: CliContext) -> MirroredRuns:
    """Those of this checkout."""
    return MirroredRuns(volumes(find_checkout(cli.cwd), cli.environ).checkpoints)


def _refuse(run: str) -> NoReturn:
    raise RunnerError(
        f"run '{run}' was last in the cloud, which does not answer for it; here is the copy that was pulled. "
        f"To go on from it here: `runner resume {run} --on host`"
    )
