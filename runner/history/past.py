"""Runs by name, each read to its end: for what looks at a run once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from job.exit_status import ExitStatus
from job.runs import read_record
from runner.checkout import find_checkout, volumes
from runner.cloud import ledger
from runner.cloud.calls import CallState
from runner.cloud.records import CloudRun, state_of
from runner.errors import RunnerError, not_found
from runner.find_run import find_run
from runner.folder import Folder
from runner.history.reader import History, Place, Reader
from runner.launch_record import read_launch
from runner.targets.protocol import RunState
from runner.terminal import Environment


def read_runs(env: Environment, runs: Sequence[str], all_samples: bool = False) -> list[History]:
    """The runs as they are now. Raises RunnerError, exit code 102, where there is no such run."""
    places = [_place(env, run) for run in runs]
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda run, place: _read(run, place, all_samples), runs, places))


def _read(run: str, place: Place, all_samples: bool) -> History:
    history = Reader(run, place, all_samples).look_at_all()
    if history is None:
        raise not_found(f"run '{run}' was removed; `runner runs` lists those that are there")
    return history


def _place(env: Environment, run: str) -> Place:
    """Its target; where no target answers for it, the copy that was pulled from the cloud."""
    try:
        return find_run(env, run).target
    except RunnerError as error:
        copy = PulledCopy(volumes(find_checkout(env.cwd), {}).checkpoints)
        if error.exit_code != ExitStatus.NOT_FOUND or copy.state(run) is None:
            raise
        env.warn(f"the cloud does not answer for run '{run}'; read is the copy that was pulled")
        return copy


@dataclass(frozen=True)
class PulledCopy:
    """Runs of the cloud, as their folders on this machine tell of them: offline, or without an account."""

    checkpoints: Path

    def state(self, run: str) -> RunState | None:
        """How it stood when it was pulled; None where it was not."""
        folder = self.checkpoints / run
        record = read_record(folder)
        if record is None:
            return None
        found = CloudRun(run, record, read_launch(folder), ledger.read(folder))
        state = state_of(found, lambda call: CallState(False))
        return replace(state, status=record.status, folder=str(folder))

    def output(self, run: str, lines: int) -> list[str]:
        """Nothing: what it printed outside its log is not pulled."""
        return []

    def files(self, volume: str) -> Folder:
        """The checkpoints."""
        return Folder(self.checkpoints)
