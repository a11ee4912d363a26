"""The target ``local``: a job is a container of this machine's Docker engine, started by Compose.

An attached job has the terminal, and draws on it. Without a terminal, Compose gets its own session,
and the runner passes a Ctrl-C on to the container: Compose 1.29 would lose the job's exit status.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from job.paths import VOLUMES
from job.run_record import read_record
from runner.console import CliContext
from runner.errors import RunnerError
from runner.paths import mount_point
from runner.plan import ImageState, JobEnvironment, Plan, PlannedFolder, TargetState, Volume
from runner.project import secret_values, volumes
from runner.request import Request
from runner.runs.store import read_exit, state_named, states
from runner.signals import hold_signals
from runner.system import System
from runner.target import LaunchHandle, RunInfo, Target
from runner.targets.compose_project import ComposeProject, write_missing_settings
from runner.targets.docker import (
    IMAGE_VARIABLE,
    Container,
    bind_mounts,
    build_setup_image,
    container_named,
    containers,
    has_setup_image,
    label_options,
    prepare_mounts,
    setup_image,
    stderr_descriptor,
)
from runner.targets.local import LocalTarget, inspect_local

WORKSPACE = "/workspace"
STOP_TIMEOUT_S = 600.0  # only bounds the wait; stop_grace_period of the compose file decides
FORWARDED_VARIABLES = ("NO_COLOR",)


class ComposeTarget(LocalTarget):
    """Runs jobs as containers of this machine."""

    name = "local"

    def __init__(self, cli: CliContext, checkout: Path) -> None:
        # The compose file binds these folders; DATA_PATH and its like concern only the host target.
        super().__init__(cli, checkout, volumes(checkout, {}))
        self.system = System(cli.environ)
        self.project = ComposeProject(self.system, checkout)

    def inspect(self, request: Request) -> TargetState:
        """Return the engine's, the image's and the run's state.

        Raises RunnerError without an engine.
        """
        self._check_engine()
        project, service = self.project, self.project.service_of(request.job.name)
        environ, image = self.cli.environ, project.image(service)
        environment = JobEnvironment(
            workspace=WORKSPACE,
            volumes=tuple(
                Volume(name, str(getattr(self.volumes, name)), f"/vol/{name}") for name in VOLUMES
            ),
            variables=tuple((n, environ[n]) for n in FORWARDED_VARIABLES if n in environ),
        )
        state = inspect_local(self, request, environment)
        if state.folder is not None and request.command is not None:
            inside = mount_point(request.command.folder)
            planned = PlannedFolder(str(request.command.folder), inside, setup=state.folder.setup)
            is_built = not planned.setup or has_setup_image(self.system, image or "", planned)
            folder = replace(state.folder, inside=inside, is_setup_built=is_built)
            state = replace(state, folder=folder)
        name = image or f"built from {self.checkout.name}/Dockerfile"
        return replace(
            state,
            image=ImageState(name, project.has_image(service)),
            gpus=len(self.system.gpus) if project.has_gpus(service) else 0,
            gpu_remedy="`runner doctor --fix` adds the GPUs of this machine",
        )

    def start(self, plan: Plan) -> LaunchHandle:
        """Write missing settings to .env, build missing images, start the container."""
        for line in write_missing_settings(self.system, self.checkout):
            self.cli.info(line)
        for volume in plan.volumes:  # the engine would make a missing folder, owned by root
            if volume.writable:
                Path(volume.here).mkdir(parents=True, exist_ok=True)
        service = self.project.service_of(plan.job)
        image = plan.image.name if plan.image else ""
        if plan.image is not None and not plan.image.is_built:
            self._build()
        if plan.folder is not None:
            prepare_mounts(plan.folder, self.checkout)
            if plan.folder.setup:
                build_setup_image(self.system, self.cli, image, plan.folder)
        for old in containers(self.system, self.checkout, plan.run):
            if not old.alive:
                self.system.call(["docker", "rm", old.id])
        self._prepare(plan)
        started = time.time()
        if not plan.detach:
            hold_signals()
        container = self._detach(plan, service) if plan.detach else self._attach(plan, service)
        launch = LaunchHandle(
            plan.run,
            self.name,
            plan.job,
            container,
            started,
            plan.detach,
            plan.process.gpus,
            plan.process.device,
        )
        self._record(plan, launch)
        return launch

    def stop(self, run: str, force: bool = False) -> bool:
        """Run `docker stop`, which grants the compose file's grace period.

        With ``force``, `docker kill`.
        """
        self._check_engine()
        active = self._active(run) or self._started_by_compose(run)
        for container in active:
            command = ["docker", "kill" if force else "stop", container.id]
            answer = self.system.call(command, timeout_s=STOP_TIMEOUT_S)
            if answer.code:
                raise RunnerError(f"the engine could not stop run '{run}': {answer.last_line}")
        return bool(active)

    def runs(self) -> Iterable[RunInfo]:
        """Return every run whose last attempt was a container of this machine."""
        known = self._newest_containers()
        return states(self.volumes.checkpoints, self.name, lambda launch: self._find(launch, known))

    def state(self, run: str) -> RunInfo | None:
        """Return the state of one run.

        None if its last attempt was not a container of this machine.
        """
        return state_named(run, self.volumes.checkpoints, self.name, self._probe)

    def output(self, run: str, lines: int) -> list[str]:
        """Return the end of the container's output, while the engine still has the container."""
        for container in containers(self.system, self.checkout, run):
            answer = self.system.call(["docker", "logs", "--tail", str(lines), container.id])
            return (answer.out + answer.err).splitlines()[-lines:]
        return []

    def _check_engine(self) -> None:
        if self.system.engine.problem:
            line = self.cli.line.replace("runner local", "runner host", 1)
            hint = f"\nto run without a container: {line}" if line != self.cli.line else ""
            raise RunnerError(
                f"{self.system.engine.problem}; run `runner doctor` for details{hint}"
            )

    def _active(self, run: str) -> list[Container]:
        return [c for c in containers(self.system, self.checkout, run) if c.alive]

    def _started_by_compose(self, run: str) -> list[Container]:
        record = read_record(self.volumes.run(run))
        host = record.attempts[-1].host if record and record.attempts else ""
        return [c for c in container_named(self.system, host) if c.alive]

    def _newest_containers(self, run: str | None = None) -> dict[str, Container]:
        """Return the newest container of each run."""
        if not (self.checkout / "volumes").is_dir() or self.system.engine.problem:
            return {}
        return {c.run: c for c in reversed(containers(self.system, self.checkout, run))}

    def _probe(self, launch: LaunchHandle) -> tuple[bool, int | None]:
        return self._find(launch, self._newest_containers(launch.run))

    def _find(self, launch: LaunchHandle, known: dict[str, Container]) -> tuple[bool, int | None]:
        container = known.get(launch.run)
        if container is None:
            return False, read_exit(self.volumes.run(launch.run))
        return container.alive, container.code

    def _interrupt(self, launch: LaunchHandle, which: signal.Signals) -> bool:
        name = "INT" if which == signal.SIGINT else "TERM"
        for container in self._active(launch.run):
            if self.system.call(["docker", "kill", f"--signal={name}", container.id]).code == 0:
                return True
        self._processes[launch.id].terminate()  # compose has not made the container yet
        return False

    def _kill(self, launch: LaunchHandle) -> None:
        for container in self._active(launch.run):
            self.system.call(["docker", "kill", container.id])

    def _build(self) -> None:
        self.cli.info("building the image; this takes some minutes, once")
        done = subprocess.run(
            self.project.command("build", "train"),  # all services share one image
            cwd=self.checkout,
            env=dict(self.cli.environ),
            stdout=stderr_descriptor(),  # stdout belongs to the job
            check=False,
        )
        if done.returncode:
            raise RunnerError("building the image failed; fix the error above and try again")

    def _run_command(self, plan: Plan, service: str, *options: str) -> list[str]:
        words = [*options, *label_options(plan.run, plan.job, self.checkout)]
        for name, value in plan.process.environment:
            words += ["-e", f"{name}={value}"]
        for name in plan.process.secrets:
            words += ["-e", name]  # compose takes the value from its own environment
        for volume in plan.volumes:
            if volume.name == "given":
                mode = "rw" if volume.writable else "ro"
                words += ["-v", f"{volume.here}:{volume.inside}:{mode}"]
        if plan.folder is not None:
            words += [word for bind in bind_mounts(plan.folder) for word in ("-v", bind)]
        return self.project.command("run", *words, service, *plan.process.command)

    def _compose_environment(self, plan: Plan) -> dict[str, str]:
        """Return variables for Compose itself: the secrets' values, and the command's own image."""
        variables = secret_values(plan.process.secrets, self.cli.environ, self.checkout)
        if plan.folder is not None and plan.folder.setup:
            image = plan.image.name if plan.image else ""
            variables[IMAGE_VARIABLE] = setup_image(self.system, image, plan.folder)
        return variables

    def _attach(self, plan: Plan, service: str) -> str:
        on_terminal = self.cli.is_terminal and not plan.as_json
        command = self._run_command(plan, service, "--rm", *([] if on_terminal else ["-T"]))
        environ = {**self.cli.environ, **self._compose_environment(plan)}
        process = subprocess.Popen(
            command, cwd=self.checkout, env=environ, start_new_session=not on_terminal
        )
        self._processes[str(process.pid)] = process
        return str(process.pid)

    def _detach(self, plan: Plan, service: str) -> str:
        answer = self.system.call(
            self._run_command(plan, service, "-d"),
            cwd=self.checkout,
            timeout_s=STOP_TIMEOUT_S,
            extra_env=self._compose_environment(plan),
        )
        if answer.code:
            raise RunnerError(f"Compose could not start the container: {answer.last_line}")
        return answer.out.split()[-1] if answer.out.split() else plan.run


def open_target(cli: CliContext, checkout: Path) -> Target:
    """Return the target for ``checkout``."""
    return ComposeTarget(cli, checkout)
