"""Runs on Modal, read from the copies that `runner pull` made on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from job.run_record import RunRecord, read_record
from runner.runs import attempts
from runner.runs.store import folders, read_launch
from runner.target import LaunchHandle, LocalVolume, RunInfo, VolumeFiles
from runner.targets.modal.calls import CallState
from runner.targets.modal.runs import CloudRun, state_of


class MirroredRuns:
    """The pulled copies in ``checkpoints``: without a network, an account, or the run on Modal."""

    name = "copy"
    poll_interval_s = 1.0

    def __init__(self, checkpoints: Path, target: str) -> None:
        self.checkpoints = checkpoints
        self.target = target

    def state(self, run: str) -> RunInfo | None:
        """Return the state of the run when it was pulled; None if it was not pulled."""
        folder = self.checkpoints / run
        record, launch = read_record(folder), read_launch(folder)
        if record is None:
            return None
        remote = launch if launch is not None and launch.target == self.target else None
        found = CloudRun(run, record, remote, attempts.read_log(folder))
        if not found.is_on_modal:
            return None
        state = state_of(found, lambda _: CallState(False))
        status = state.status if found.log.status is not None else record.status
        return replace(
            state,
            status=status,
            folder=str(folder),
            is_copy=True,
            last_seen=_last_seen(found, record),
        )

    def runs(self) -> Iterable[RunInfo]:
        """Return every run that was pulled."""
        states = (self.state(folder.name) for folder in folders(self.checkpoints))
        return [state for state in states if state is not None]

    def launched(self, run: str) -> LaunchHandle | None:
        """Return the launch that was pulled with the run."""
        return read_launch(self.checkpoints / run)

    def output(self, run: str, lines: int) -> list[str]:
        """Return []: output outside the log is not pulled."""
        return []

    def files(self, volume: str) -> VolumeFiles:
        """Return the checkpoints volume of this machine."""
        return LocalVolume(self.checkpoints)


def _last_seen(run: CloudRun, record: RunRecord) -> float | None:
    """Return when the copied run was last active, in seconds since the epoch; None if unknown."""
    if run.log.attempts:
        return run.log.attempts[-1].seen
    if record.attempts:
        return record.attempts[-1].started
    return run.launch.started if run.launch else None
