"""Runs of the cloud as their folders on this machine tell of them: offline, without an account, or deleted there.

It answers as a target does for whatever looks at a run, and starts and stops nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from job.runs import RunRecord, read_record
from runner.checkout import find_checkout, volumes
from runner.cloud import ledger
from runner.cloud.calls import CallState
from runner.cloud.records import CloudRun, state_of
from runner.errors import RunnerError
from runner.folder import Folder
from runner.plans.planned import Facts, Plan
from runner.requests.request import Request
from runner.runs.folders import folders
from runner.runs.launch_record import read_launch
from runner.targets.protocol import Files, RunState, Started
from runner.terminal import Environment


class PulledCopy:
    """The runs in ``checkpoints`` whose last attempt was in the cloud."""

    name = "copy"
    look_seconds = 1.0

    def __init__(self, checkpoints: Path) -> None:
        self.checkpoints = checkpoints

    def state(self, run: str) -> RunState | None:
        """How it stood when it was pulled; None where it was not."""
        folder = self.checkpoints / run
        record, launch = read_record(folder), read_launch(folder)
        if record is None:
            return None
        of_cloud = launch if launch is not None and launch.target == "cloud" else None
        found = CloudRun(run, record, of_cloud, ledger.read(folder))
        if not found.is_of_cloud:
            return None
        state = state_of(found, lambda call: CallState(False))
        status = state.status if found.ledger.status is not None else record.status
        return replace(state, status=status, folder=str(folder), is_copy=True, seen=_last_seen(found, record))

    def runs(self) -> Iterable[RunState]:
        """Every run that was pulled."""
        states = (self.state(folder.name) for folder in folders(self.checkpoints))
        return [state for state in states if state is not None]

    def output(self, run: str, lines: int) -> list[str]:
        """Nothing: what it printed outside its log is not pulled."""
        return []

    def files(self, volume: str) -> Files:
        """The checkpoints."""
        return Folder(self.checkpoints)

    def launched(self, run: str) -> Started | None:
        """What was started in the cloud."""
        return read_launch(self.checkpoints / run)

    def facts(self, request: Request) -> Facts:
        """Raises RunnerError."""
        _refuse(request.run)

    def plan(self, request: Request, facts: Facts) -> Plan:
        """Raises RunnerError."""
        _refuse(request.run)

    def start(self, plan: Plan) -> Started:
        """Raises RunnerError."""
        _refuse(plan.run)

    def follow(self, started: Started) -> int:
        """Raises RunnerError."""
        _refuse(started.run)

    def stop(self, run: str, now: bool = False) -> bool:
        """Raises RunnerError."""
        _refuse(run)


def _last_seen(run: CloudRun, record: RunRecord) -> float | None:
    """When it was last at work, as far as was pulled; None where nothing tells."""
    if run.ledger.attempts:
        return run.ledger.attempts[-1].seen
    return record.attempts[-1].started if record.attempts else run.launch.started if run.launch else None


def pulled_copies(env: Environment) -> PulledCopy:
    """Those of this checkout."""
    return PulledCopy(volumes(find_checkout(env.cwd), env.environ).checkpoints)


def _refuse(run: str) -> NoReturn:
    raise RunnerError(
        f"run '{run}' was last in the cloud, which does not answer for it; here is the copy that was pulled. "
        f"To go on from it here: `runner resume {run} --on host`"
    )
