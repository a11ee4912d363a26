"""The common parts of targets: their state before a plan, and two base classes.

Runs of a `LocalTarget` are folders of this machine, and a job is a process to follow. Jobs of a
`ContainerTarget` are containers.
"""

from __future__ import annotations

import signal
import subprocess
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from job.exit_status import ExitStatus
from job.files import exclusive_lock, write_atomically
from job.gpu_queue import GpuAccess, Ticket, ahead_of, choose_gpus, live_tickets, visible_gpus
from job.paths import VOLUMES, WORKSPACE, VolumePaths
from job.ports import listen
from job.pretrained import weights_of
from job.run_record import RunStatus, read_record
from job.step_folders import discard
from runner.console import CliContext
from runner.errors import RunnerError
from runner.home import queue_folder
from runner.jobs import JOBS
from runner.plan import FolderState, JobEnvironment, Plan, PriorRun, QueueState, TargetState, Volume
from runner.planning.packaging import list_files, setup_lines
from runner.planning.plan import already_active_message, make_plan
from runner.project import check_forwarded_env, git_state, secret_names
from runner.request import (
    CommandRequest,
    Request,
    ServeRequest,
    TrainRequest,
    UserCommand,
    folder_name,
)
from runner.runs.find import remote_state
from runner.runs.store import (
    SIGTERM_STATUS,
    ProbeLaunch,
    discard_if_not_started,
    is_active_locally,
    newest_step,
    prepare_folder,
    read_launch,
    state_named,
    states,
    write_exit,
    write_launch,
)
from runner.runs.volume import is_dataset_ready, recipe_of
from runner.signals import SignalForwarder, press_ctrl_c
from runner.system import System
from runner.target import LaunchHandle, LocalVolume, RunInfo, Target, VolumeFiles
from runner.targets.docker import Container, RunContainers, exec_command
from runner.targets.process import exit_status, follow_process

STOP_TIMEOUT_S = 600.0  # for `docker stop`; the grace period of the container decides


class LocalTarget(Target):
    """Runs in the folders ``volumes`` of this machine.

    Subclasses start, probe and signal the jobs.
    """

    name = ""
    poll_interval_s = 0.2
    has_remote_volumes = False

    def __init__(self, cli: CliContext, checkout: Path, volumes: VolumePaths) -> None:
        self.cli = cli
        self.checkout = checkout
        self.volumes = volumes
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._launched: dict[str, LaunchHandle] = {}

    @abstractmethod
    def _prober(self, run: str | None) -> ProbeLaunch:
        """Return a function that tells the state of a launch, for one run or for all."""

    def _wait(self, launch: LaunchHandle) -> int:
        """Wait for the job and return its exit status."""
        return exit_status(self._processes[launch.id].wait())

    @abstractmethod
    def _interrupt(self, launch: LaunchHandle, received: signal.Signals) -> bool:
        """Ask the job to stop; False if the job did not exist yet and was prevented."""

    @abstractmethod
    def _kill(self, launch: LaunchHandle) -> None:
        """Kill every process of the job."""

    def inspect_request(self, request: Request, environment: JobEnvironment) -> TargetState:
        """Return the state on this machine's disk; subclasses add what only they know."""
        state = inspect_target(
            self, self.cli, self.checkout, request, environment, lambda: self._find_run(request)
        )
        if request.command is None:
            return state
        folder = FolderState(str(request.command.folder), setup=setup_lines(request.command))
        return replace(state, folder=folder)

    def _find_run(self, request: Request) -> PriorRun:
        folder, writes_run = self.volumes.run(request.run), request.job.writes_run
        record = read_record(folder) if writes_run or request.job.reads_run else None
        is_training = isinstance(request, TrainRequest)
        return PriorRun(
            record=record,
            recipe=recipe_of(self.files("checkpoints"), request.run) if is_training else None,
            step=newest_step(folder),
            attempts=len(record.attempts) if record else 0,
            active=describe_active(self, folder) if writes_run or request.detach else None,
            other=remote_state(self.cli, self.checkout, folder) if writes_run else None,
        )

    def plan(self, request: Request, state: TargetState) -> Plan:
        """Return the plan. Raises UsageError if a server's port can't be used."""
        plan = make_plan(request, state)
        # Docker's own process may open a port below 1024.
        if isinstance(request, ServeRequest) and (request.port >= 1024 or not plan.image):
            listen(request.host, request.port).close()
        return plan

    def follow(self, started: LaunchHandle) -> int:
        """Wait for the job; the first signal is passed on to it, the second kills it."""
        was_prevented = False

        def on_first(received: signal.Signals) -> None:
            nonlocal was_prevented
            if received == signal.SIGINT and has_terminal(started.job):
                forwarder.count = 0  # the terminal sent it to the job, which continues
                return
            was_prevented = not self._interrupt(started, received)
            self.cli.info(f"stopping {started.job}; {press_ctrl_c(received)} to kill it")

        def on_repeat() -> None:
            self._kill(started)
            self.cli.info(f"killing {started.job}")

        with SignalForwarder(on_first, on_repeat) as forwarder:
            code = self._wait(started)
        folder = self.volumes.run(started.run)
        if read_launch(folder) == started:
            write_exit(folder, code)
            if discard_if_not_started(folder, code):
                self._launched.pop(started.run)
                was_prevented |= code == SIGTERM_STATUS
        ended_by_user = forwarder.killed or was_prevented
        return int(ExitStatus.INTERRUPTED) if ended_by_user and code else code

    def runs(self) -> Iterable[RunInfo]:
        """Return every run whose last attempt was on this target."""
        infos = states(self.volumes.checkpoints, self.name, self._prober(None))
        return map(self._with_queue_position, infos)

    def state(self, run: str) -> RunInfo | None:
        """Return the state of one run; None if its last attempt was not on this target."""
        state = state_named(run, self.volumes.checkpoints, self.name, self._prober(run))
        return self._with_queue_position(state) if state is not None else None

    def _with_queue_position(self, state: RunInfo) -> RunInfo:
        """Return the state with its position in the queue, if it waits there."""
        if state.status == RunStatus.STARTING:
            waiting = [t for t in live_tickets(queue_folder(self.cli.environ)) if not t.taken]
            for position, ticket in enumerate(waiting, 1):
                if ticket.folder == state.folder:
                    return replace(state, status=RunStatus.QUEUED, queue_position=position)
        return state

    def queue_state(
        self, request: Request, gpus: int, container_path: str = ""
    ) -> QueueState | None:
        """Return the queue for a machine with ``gpus``; None if the request needs no GPU."""
        if isinstance(request, CommandRequest) and request.is_interactive:
            return None
        gpus = 0 if request.device == "cpu" else gpus
        is_queued = request.access == GpuAccess.QUEUE and request.sweep is None
        if not request.job.writes_run or not (gpus or is_queued):
            return None
        folder = queue_folder(self.cli.environ)
        ticket = Ticket(
            request.run,
            str(self.volumes.run(request.run)),
            gpus,
            request.gpus if request.job.multi_gpu else None,
            request.access,
            request.sweep or "",
        )
        # Compose does not pass the variable on.
        environ = {} if container_path else self.cli.environ
        environ = {**environ, **dict(request.target_options.environment)}
        enqueued = ticket.enqueued(visible_gpus(gpus, environ))
        ahead = ahead_of(enqueued, live_tickets(folder))
        blocker = ahead[0] if ahead and not choose_gpus(enqueued, ahead) else None
        return QueueState(str(folder), container_path or str(folder), ticket, blocker)

    def launched(self, run: str) -> LaunchHandle | None:
        """Return the last launch, from the run's folder.

        If that was deleted, the one of this object.
        """
        return read_launch(self.volumes.run(run)) or self._launched.get(run)

    def files(self, volume: str) -> VolumeFiles:
        """Return the volume's folder."""
        return LocalVolume(getattr(self.volumes, volume))

    def remove(self, path: str) -> None:
        """Delete a folder of the checkpoints volume."""
        folder = self.volumes.checkpoints / path
        discard(folder)
        if folder.exists():
            raise RunnerError(
                f"can't delete {folder}; a job in a container may own it: delete it with its rights"
            )

    def write_record(self, run: str, name: str, text: str) -> None:
        """Write a small file into the run's folder."""
        write_atomically(self.volumes.run(run) / name, text)

    @contextmanager
    def _starting(self, plan: Plan) -> Iterator[Path]:
        """Prepare the run's folder and hold it until the job is recorded.

        Raises RunnerError if a different launch has started the run since the plan was made.
        """
        folder = self.volumes.run(plan.run)
        if not plan.records_launch:
            yield folder
            return
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder) as has_lock:
            active = describe_active(self, folder) if has_lock else "starting on this machine"
            if active:
                raise RunnerError(already_active_message(plan.run, active))
            prepare_folder(folder)
            yield folder

    def _record(self, plan: Plan, launch: LaunchHandle) -> None:
        if plan.records_launch:
            write_launch(self.volumes.run(plan.run), launch)
            self._launched[plan.run] = launch


class ContainerTarget(Target):
    """Runs jobs as containers of a Docker engine."""

    cli: CliContext
    checkout: Path
    system: System
    containers: RunContainers

    def active_containers(self, run: str) -> list[Container]:
        """Return the containers of the run that have not ended."""
        return self.containers.active(run)

    def stop(self, run: str, force: bool = False) -> bool:
        """Run `docker stop`, which grants the container's grace period, or `docker kill`."""
        active = self.active_containers(run)
        for container in active:
            command = ["docker", "kill" if force else "stop", container.id]
            answer = self.system.call(command, timeout_s=STOP_TIMEOUT_S)
            if answer.code:
                raise RunnerError(
                    f"Docker could not stop run '{run}' on {self.name}: {answer.last_line}"
                )
        return bool(active)

    def enter(self, run: str, argv: Sequence[str]) -> int:
        """Run ``argv`` in the run's container, as its user (container/entrypoint.sh)."""
        active = self.active_containers(run)
        if not active:
            raise RunnerError(f"the container of run '{run}' has ended")
        return self._exec(active[0].id, argv)

    def output(self, run: str, lines: int) -> list[str]:
        """Return the end of the container's output, while the engine still has the container."""
        return self.containers.output(run, lines)

    def _exec(self, container: str, argv: Sequence[str]) -> int:
        command = self.system.command_line(exec_command(self.cli, container, argv))
        if self.cli.is_terminal and command[0] == "ssh":
            command.insert(1, "-t")
        return follow_process(self.cli.environ, command, self.cli.cwd)


def has_terminal(job: str) -> bool:
    """Return True if the job, not the runner, decides what Ctrl-C does."""
    return job in JOBS and JOBS[job].has_terminal


def inspect_target(
    target: Target,
    cli: CliContext,
    checkout: Path,
    request: Request,
    environment: JobEnvironment,
    find_run: Callable[[], PriorRun],
) -> TargetState:
    """Return the part of a target's state that all targets have, reading the volumes in parallel.

    ``find_run`` reads the existing run. Without an account, the data on the target are unknown.
    """
    check_forwarded_env(request.target_options.forwarded_env, cli.environ, checkout)
    dataset = request.settings.data.dataset if request.settings else None
    weights, command = weights_of(request.settings), request.command
    with ThreadPoolExecutor() as pool:
        git = pool.submit(git_state, command.folder if command else checkout)
        ready = size = None
        if dataset and target.is_configured():
            ready = pool.submit(is_dataset_ready, target.files("data"), dataset)
        if weights and target.is_configured():
            size = pool.submit(target.files("cache").size, weights.weights)
        return TargetState(
            target=target.name,
            checkout=str(checkout),
            environment=environment,
            run=find_run(),
            is_dataset_ready=ready.result() if ready else None,
            is_pretrained_cached=size.result() is not None if size else None,
            secrets=secret_names(cli.environ, checkout),
            git=tuple((git.result() or {}).items()),
        )


def container_volumes(volumes: VolumePaths, remote: Mapping[str, str]) -> tuple[Volume, ...]:
    """Return the volumes as a container sees them; ``remote`` has their names on the target."""
    return tuple(
        Volume(name, str(getattr(volumes, name)), f"/vol/{name}", remote=remote.get(name, ""))
        for name in VOLUMES
    )


def remote_environment(
    volumes: VolumePaths, names: Mapping[str, str], reports_end: bool = False
) -> JobEnvironment:
    """Return the surroundings of a job in a container that can't mount this machine's folders."""
    variables = VolumePaths.under(Path("/vol")).environment() | {"PYTHONPATH": WORKSPACE}
    return JobEnvironment(
        workspace=WORKSPACE,
        volumes=container_volumes(volumes, names),
        can_mount=False,
        variables=tuple(variables.items()),
        reports_end=reports_end,
    )


def uploaded_folder(command: UserCommand, checkout: Path) -> FolderState:
    """Return a command's folder that is uploaded. Raises RunnerError for an unreadable file."""
    listing = list_files(command.folder, checkout)
    listing.check(command.script)
    path = f"/job/{folder_name(command.folder)}"
    return FolderState(path, manifest=listing.summary(), setup=setup_lines(command))


def describe_active(target: LocalTarget, folder: Path) -> str | None:
    """Return "running on host" or the like if a process works on the run in ``folder``; else None.

    A run of the other local target is known by its lock or its place in the queue: asking that
    target may need a Docker engine.
    """
    state = target.state(folder.name)
    if state is not None and state.alive:
        return f"{state.status} on {state.target}"
    if not is_active_locally(folder):
        queued = [ticket.folder for ticket in live_tickets(queue_folder(target.cli.environ))]
        return "queued on this machine" if str(folder) in queued else None
    record = read_record(folder)
    other = record.attempts[-1].launch.get("target") if record and record.attempts else None
    return f"running on {other or 'this machine'}"
