"""Local: a job is a container of this machine's engine, started by compose.

An attached one has the terminal, so that what it draws is drawn here. Off a terminal compose gets a session
of its own, and a Ctrl-C reaches the container through us: compose 1.29 would lose the job's exit status.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from job.exit_status import ExitStatus
from job.paths import VOLUMES
from job.run_record import read_record
from runner.console import CliContext
from runner.errors import RunnerError
from runner.paths import mount_point
from runner.plan import Plan, PlannedFolder, TargetState, Volume
from runner.planning.plan import make_plan
from runner.project import secret_values, volumes
from runner.request import Request, UserCommand
from runner.runs.store import (
    forget_unbegun,
    make_folder,
    note_exit,
    read_exit,
    read_launch,
    state_named,
    states,
    write_launch,
)
from runner.signals import Interrupts, keep
from runner.system import System
from runner.target import LaunchHandle, LocalVolume, RunInfo, Target, VolumeFiles
from runner.targets.compose_project import Compose, shell_variables, write_missing
from runner.targets.docker import (
    IMAGE_VARIABLE,
    Container,
    binds,
    build_layer,
    container_named,
    containers,
    has_layer,
    labels,
    layer_name,
    prepare_folder,
)
from runner.targets.inspect_local import inspect_local

WORKSPACE = "/workspace"

# Seconds. The compose file's stop_grace_period decides how long a container has; this only bounds the wait.
STOP_SECONDS = 600.0


class ComposeTarget:
    """The target ``local``."""

    name = "local"
    poll_interval_s = 0.2

    def __init__(self, cli: CliContext, checkout: Path) -> None:
        self.cli = cli
        self.checkout = checkout
        self.machine = System(cli.environ)
        self.compose = Compose(self.machine, checkout)
        self.locations = volumes(
            checkout, {}
        )  # what the compose file binds, whatever the host target uses
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._launched: dict[str, LaunchHandle] = {}

    def facts(self, request: Request) -> TargetState:
        """Look at the engine, the compose file, the image and the run's folder. RunnerError without an engine."""
        self._need_engine()
        here, service = self.locations, self.compose.service_of(request.job.name)
        found = inspect_local(self, self.cli, self.checkout, here, request)
        if request.command is not None:
            found = self._look_at_folder(found, request.command, service)
        return replace(
            found,
            workspace=WORKSPACE,
            volumes=tuple(
                Volume(name, str(getattr(here, name)), f"/vol/{name}") for name in VOLUMES
            ),
            image=self.compose.image(service) or f"built from {self.checkout.name}/Dockerfile",
            image_built=self.compose.has_image(service),
            gpus=len(self.machine.gpus) if self.compose.has_gpus(service) else 0,
            gpu_remedy="`runner doctor --fix` adds what this machine has",
            environment=(
                *found.environment,
                *(
                    (name, self.cli.environ[name])
                    for name in ("NO_COLOR",)
                    if name in self.cli.environ
                ),
            ),
        )

    def plan(self, request: Request, facts: TargetState) -> Plan:
        """Nothing beyond what every target does."""
        return make_plan(request, facts)

    def start(self, plan: Plan) -> LaunchHandle:
        """Make .env and the volumes' folders where they are missing, build the image, start the container."""
        for line in write_missing(self.machine, self.checkout):
            self.cli.info(line)
        self._make_folders(plan)
        service = self.compose.service_of(plan.job)
        if not plan.image_built:
            self._build()
        if plan.folder is not None:
            prepare_folder(plan.folder, self.checkout)
            if plan.folder.setup:
                build_layer(self.machine, self.cli, plan.image or "", plan.folder)
        for old in containers(self.machine, self.checkout, plan.run):
            if not old.alive:
                self.machine.call(["docker", "rm", old.id])
        folder = self.locations.run(plan.run)
        if plan.is_noted:
            make_folder(folder)
        started = time.time()
        if not plan.detach:
            keep()
        id = self._detach(plan, service) if plan.detach else self._attach(plan, service)
        launch = LaunchHandle(
            plan.run, self.name, plan.job, id, started, plan.detach, plan.gpus, plan.device
        )
        if plan.is_noted:
            write_launch(folder, launch)
            self._launched[plan.run] = launch
        return launch

    def follow(self, started: LaunchHandle) -> int:
        """Wait for the container; the first Ctrl-C is passed on to the job, the second kills it."""
        process = self._processes[started.id]

        too_early: list[bool] = []

        def first(which: signal.Signals) -> None:
            self.cli.info(f"stopping: {started.job} finishes what it is at; Ctrl-C again kills it")
            asked = "INT" if which == signal.SIGINT else "TERM"
            for container in self._alive(started.run):
                if (
                    self.machine.call(["docker", "kill", f"--signal={asked}", container.id]).code
                    == 0
                ):
                    return
            too_early.append(True)  # compose is still making the container
            process.terminate()

        def again() -> None:
            self.cli.info("killing it")
            for container in self._alive(started.run):
                self.machine.call(["docker", "kill", container.id])

        with Interrupts(first, again) as interrupts:
            code = process.wait()
        code = code if code >= 0 else 128 - code
        folder = self.locations.run(started.run)
        if read_launch(folder) == started:
            note_exit(folder, code)
            if forget_unbegun(folder, code):
                self._launched.pop(started.run)
        ended_by_us = interrupts.killed or too_early
        return int(ExitStatus.INTERRUPTED) if ended_by_us and code else code

    def stop(self, run: str, now: bool = False) -> bool:
        """``docker stop``, which gives the job the compose file's grace period; or ``docker kill``."""
        self._need_engine()
        alive = self._alive(run) or self._started_by_compose(run)
        for container in alive:
            command = ["docker", "kill" if now else "stop", container.id]
            answer = self.machine.call(command, patience=STOP_SECONDS)
            if answer.code:
                raise RunnerError(f"the engine could not stop run '{run}': {answer.last_line}")
        return bool(alive)

    def runs(self) -> Iterable[RunInfo]:
        """Every run whose last attempt was a container of this machine."""
        known = self._newest()
        return states(
            self.locations.checkpoints, self.name, lambda started: self._look(started, known)
        )

    def state(self, run: str) -> RunInfo | None:
        """One of ``runs``."""
        return state_named(
            run,
            self.locations.checkpoints,
            self.name,
            lambda started: self._look(started, self._newest(run)),
        )

    def launched(self, run: str) -> LaunchHandle | None:
        """What the run's folder says; of a folder that was deleted meanwhile, what was started from here."""
        return read_launch(self.locations.run(run)) or self._launched.get(run)

    def output(self, run: str, lines: int) -> list[str]:
        """The end of what the container printed, while the engine still has it."""
        for container in containers(self.machine, self.checkout, run):
            answer = self.machine.call(["docker", "logs", "--tail", str(lines), container.id])
            return (answer.out + answer.err).splitlines()[-lines:]
        return []

    def files(self, volume: str) -> VolumeFiles:
        """The volume's folder."""
        return LocalVolume(getattr(self.locations, volume))

    def _need_engine(self) -> None:
        if self.machine.engine.problem:
            instead = self.cli.line.replace("runner local", "runner host", 1)
            hint = f"\nwithout a container: {instead}" if instead != self.cli.line else ""
            raise RunnerError(f"{self.machine.engine.problem}; `runner doctor` says more{hint}")

    def _alive(self, run: str) -> list[Container]:
        return [c for c in containers(self.machine, self.checkout, run) if c.alive]

    def _started_by_compose(self, run: str) -> list[Container]:
        record = read_record(self.locations.run(run))
        host = record.attempts[-1].host if record and record.attempts else ""
        return [c for c in container_named(self.machine, host) if c.alive]

    def _newest(self, run: str | None = None) -> dict[str, Container]:
        """The newest container of each run, or of one."""
        if not (self.checkout / "volumes").is_dir() or self.machine.engine.problem:
            return {}
        return {c.run: c for c in reversed(containers(self.machine, self.checkout, run))}

    def _look(self, started: LaunchHandle, known: dict[str, Container]) -> tuple[bool, int | None]:
        container = known.get(started.run)
        if container is None:
            return False, read_exit(self.locations.run(started.run))
        return container.alive, container.code

    def _make_folders(self, plan: Plan) -> None:
        """A bind source that is missing would be made by the engine, and belong to root."""
        for volume in plan.volumes:
            if volume.writable:
                Path(volume.here).mkdir(parents=True, exist_ok=True)

    def _build(self) -> None:
        self.cli.info("building the image; this takes some minutes and is done once")
        # stdout is the job's: what the build says is talk.
        done = subprocess.run(
            self.compose.command("build", "train"),  # all services have the one image
            cwd=self.checkout,
            env=dict(self.cli.environ),
            stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else None,
            check=False,
        )
        if done.returncode:
            raise RunnerError("the image could not be built; what it says above is why")

    def _words(self, plan: Plan, service: str, *options: str) -> list[str]:
        words = [
            *options,
            *labels(plan.run, plan.job, self.checkout),
            *shell_variables(plan.environment),
        ]
        words += [
            word for name in plan.secrets for word in ("-e", name)
        ]  # the value comes from our variables
        for volume in plan.volumes:
            if volume.name == "given":
                words += [
                    "-v",
                    f"{volume.here}:{volume.inside}:{'rw' if volume.writable else 'ro'}",
                ]
        if plan.folder is not None:
            words += [word for bind in binds(plan.folder) for word in ("-v", bind)]
        return self.compose.command("run", *words, service, *plan.command)

    def _environ(self, plan: Plan) -> dict[str, str]:
        return {**self.cli.environ, **self._more(plan)}

    def _more(self, plan: Plan) -> dict[str, str]:
        """Variables for compose itself: the values of secrets, and an image of the command's own."""
        values = secret_values(plan.secrets, self.cli.environ, self.checkout)
        if plan.folder is not None and plan.folder.setup:
            values[IMAGE_VARIABLE] = layer_name(self.machine, plan.image or "", plan.folder)
        return values

    def _look_at_folder(
        self, found: TargetState, command: UserCommand, service: str
    ) -> TargetState:
        folder, image = mount_point(command.folder), self.compose.image(service) or ""
        planned = PlannedFolder(str(command.folder), folder, setup=found.setup)
        return replace(
            found,
            folder=folder,
            setup_built=not found.setup or has_layer(self.machine, image, planned),
        )

    def _attach(self, plan: Plan, service: str) -> str:
        on_terminal = self.cli.is_terminal and not plan.as_json
        words = self._words(plan, service, "--rm", *([] if on_terminal else ["-T"]))
        process = subprocess.Popen(
            words, cwd=self.checkout, env=self._environ(plan), start_new_session=not on_terminal
        )
        self._processes[str(process.pid)] = process
        return str(process.pid)

    def _detach(self, plan: Plan, service: str) -> str:
        answer = self.machine.call(
            self._words(plan, service, "-d"),
            cwd=self.checkout,
            patience=STOP_SECONDS,
            more=self._more(plan),
        )
        if answer.code:
            raise RunnerError(f"compose could not start it: {answer.last_line}")
        return answer.out.split()[-1] if answer.out.split() else plan.run


def _has_descriptor(stream: object) -> bool:
    try:
        return stream.fileno() >= 0  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False


def open_target(cli: CliContext, checkout: Path) -> Target:
    """The target for ``checkout``."""
    return ComposeTarget(cli, checkout)
