"""The common part of the local targets: runs are folders, a job is a process to follow."""

from __future__ import annotations

import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from job.exit_status import ExitStatus
from job.paths import VolumePaths
from job.pretrained import weights_of
from job.run_record import read_record
from runner.console import CliContext
from runner.plan import FolderState, JobEnvironment, Plan, PriorRun, TargetState
from runner.planning.packaging import setup_lines
from runner.planning.plan import make_plan
from runner.project import git_state, secret_names
from runner.request import Request, TrainRequest
from runner.runs.divergence import remote_state
from runner.runs.store import (
    discard_if_not_started,
    is_active_locally,
    is_dataset_ready,
    newest_step,
    prepare_folder,
    read_launch,
    recipe_of,
    state_named,
    states,
    write_exit,
    write_launch,
)
from runner.signals import SignalForwarder
from runner.target import LaunchHandle, LocalVolume, RunInfo, RunSource, VolumeFiles
from runner.targets.process import exit_status


class LocalTarget(ABC):
    """Runs in the folders ``volumes`` of this machine.

    Subclasses start, probe and signal the jobs.
    """

    name = ""
    poll_interval_s = 0.2
    bills = False
    has_remote_volumes = False
    default_parallel_trials = 1  # trials share this machine

    def __init__(self, cli: CliContext, checkout: Path, volumes: VolumePaths) -> None:
        self.cli = cli
        self.checkout = checkout
        self.volumes = volumes
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._launched: dict[str, LaunchHandle] = {}

    @abstractmethod
    def output(self, run: str, lines: int) -> list[str]:
        """Return the last lines that the job printed outside its log."""

    @abstractmethod
    def _probe(self, launch: LaunchHandle) -> tuple[bool, int | None]:
        """Return whether the launch is active, and its exit status if it is known."""

    @abstractmethod
    def _interrupt(self, launch: LaunchHandle, which: signal.Signals) -> bool:
        """Ask the job to stop; False if the job did not exist yet and was prevented."""

    @abstractmethod
    def _kill(self, launch: LaunchHandle) -> None:
        """Kill every process of the job."""

    def is_configured(self) -> bool:
        """Return True: no account is needed."""
        return True

    def check_configured(self) -> None:
        """Do nothing: no account is needed."""
        return None

    def mirror(self) -> None:
        """Return None: the runs themselves are on this machine."""
        return None

    def plan(self, request: Request, state: TargetState) -> Plan:
        """Return ``make_plan`` without additions."""
        return make_plan(request, state)

    def follow(self, started: LaunchHandle) -> int:
        """Wait for the job; the first signal is passed on to it, the second kills it."""
        process = self._processes[started.id]
        was_prevented = False

        def first(which: signal.Signals) -> None:
            nonlocal was_prevented
            was_prevented = not self._interrupt(started, which)
            self.cli.info(f"stopping {started.job}; press Ctrl-C again to kill it")

        def again() -> None:
            self._kill(started)
            self.cli.info(f"killing {started.job}")

        with SignalForwarder(first, again) as forwarder:
            code = exit_status(process.wait())
        folder = self.volumes.run(started.run)
        if read_launch(folder) == started:
            write_exit(folder, code)
            if discard_if_not_started(folder, code):
                self._launched.pop(started.run)
        ended_by_user = forwarder.killed or was_prevented
        return int(ExitStatus.INTERRUPTED) if ended_by_user and code else code

    def runs(self) -> Iterable[RunInfo]:
        """Return every run whose last attempt was on this target."""
        return states(self.volumes.checkpoints, self.name, self._probe)

    def state(self, run: str) -> RunInfo | None:
        """Return the state of one run; None if its last attempt was not on this target."""
        return state_named(run, self.volumes.checkpoints, self.name, self._probe)

    def launched(self, run: str) -> LaunchHandle | None:
        """Return the last launch, from the run's folder.

        If that was deleted, the one of this object.
        """
        return read_launch(self.volumes.run(run)) or self._launched.get(run)

    def files(self, volume: str) -> VolumeFiles:
        """Return the volume's folder."""
        return LocalVolume(getattr(self.volumes, volume))

    def _prepare(self, plan: Plan) -> Path:
        folder = self.volumes.run(plan.run)
        if plan.records_launch:
            prepare_folder(folder)
        return folder

    def _record(self, plan: Plan, launch: LaunchHandle) -> None:
        if plan.records_launch:
            write_launch(self.volumes.run(plan.run), launch)
            self._launched[plan.run] = launch


def inspect_local(
    target: LocalTarget, request: Request, environment: JobEnvironment
) -> TargetState:
    """Return what this machine's disk tells; the target replaces what it knows better."""
    command, checkout, volumes = request.command, target.checkout, target.volumes
    folder = volumes.run(request.run)
    concerns_run = request.job.writes_run or request.job.reads_run
    record = read_record(folder) if concerns_run else None
    dataset = request.settings.data.dataset if request.settings else None
    weights = weights_of(request.settings)
    is_training = isinstance(request, TrainRequest)
    writes = request.job.writes_run or request.detach
    return TargetState(
        target=target.name,
        checkout=str(checkout),
        environment=environment,
        run=PriorRun(
            record=record,
            recipe=recipe_of(target.files("checkpoints"), request.run) if is_training else None,
            step=newest_step(folder),
            attempts=len(record.attempts) if record else 0,
            active=describe_active(target, folder) if writes else None,
            other=remote_state(target.cli, checkout, folder) if request.job.writes_run else None,
        ),
        folder=FolderState(str(command.folder), setup=setup_lines(command)) if command else None,
        is_dataset_ready=is_dataset_ready(target.files("data"), dataset) if dataset else None,
        is_pretrained_cached=(volumes.cache / weights.weights).is_file() if weights else None,
        secrets=secret_names(target.cli.environ, checkout),
        git=tuple((git_state(command.folder if command else checkout) or {}).items()),
    )


def describe_active(target: RunSource, folder: Path) -> str | None:
    """Return "running on host" or the like if a process works on the run in ``folder``; else None.

    A run of the other local target is known by its lock: asking that target may need a Docker
    engine.
    """
    state = target.state(folder.name)
    if state is not None and state.alive:
        return f"{state.status} on {state.target}"
    if not is_active_locally(folder):
        return None
    record = read_record(folder)
    other = record.attempts[-1].launch.get("target") if record and record.attempts else None
    return f"running on {other or 'this machine'}"
