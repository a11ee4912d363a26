"""The target ``local``: a job is a container of this machine's Docker engine, started by Compose.

An attached job has the terminal, and draws on it. Compose gets its own session, and the runner
passes signals on to the container: Compose 1.29 would lose the job's exit status after a Ctrl-C,
and kill the container when the terminal is closed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from job.paths import VOLUMES, WORKSPACE
from job.run_record import read_record
from job.trackers import image_packages
from runner.console import CliContext
from runner.errors import RunnerError
from runner.paths import mount_point
from runner.plan import ImageState, JobEnvironment, Plan, TargetState
from runner.planning.command_plan import is_plain
from runner.project import COMPOSE_FILE, find_checkout, secret_values, volumes, write_settings
from runner.request import CommandRequest, Request
from runner.runs.store import ProbeLaunch
from runner.signals import hold_signals, signal_handler
from runner.system import System
from runner.target import LaunchHandle
from runner.targets.base import STOP_TIMEOUT_S, ContainerTarget, LocalTarget, container_volumes
from runner.targets.docker import (
    IMAGE_VARIABLE,
    ComposeProject,
    Container,
    RunContainers,
    add_packages,
    bind_mounts,
    check_image_program,
    check_shared_files,
    container_name,
    container_named,
    ensure_setup_image,
    prepare_mounts,
    setup_image,
    transfer_image,
    with_image_digest,
    with_setup_state,
)
from runner.targets.process import follow_process

QUEUE = "/vol/queue"
STDERR, CHUNK_BYTES = 2, 1 << 16
DRAIN_TIMEOUT_S = 5.0  # for the last messages of Compose
STATUS_LINE = re.compile(rb"^(?:\x1b\[31mERROR\x1b\[0m: )?(\d{1,3})\n\Z", re.MULTILINE)
FORWARDED_VARIABLES = ("NO_COLOR",)


class ComposeTarget(ContainerTarget, LocalTarget):
    """Runs jobs as containers of this machine."""

    name = "local"

    def __init__(self, cli: CliContext, checkout: Path) -> None:
        # The compose file binds these folders; DATA_PATH and its like concern only the host target.
        super().__init__(cli, checkout, volumes(checkout, {}))
        self.system = compose_system(cli, checkout)
        self.project = ComposeProject(self.system, checkout)
        self.containers = RunContainers(self.system, checkout)

    def inspect(self, request: Request) -> TargetState:
        """Return the engine's, the image's and the run's state.

        Raises RunnerError without an engine.
        """
        self._check_engine()
        project, service = self.project, self.project.service_of(request.job.name)
        environ, image = self.cli.environ, project.image(service)
        packages = image_packages(request.trackers) if image else ()
        image = "-".join((image, *sorted(request.trackers))) if image else None
        environment = JobEnvironment(
            workspace=WORKSPACE,
            volumes=container_volumes(self.volumes, {}),
            variables=tuple((n, environ[n]) for n in FORWARDED_VARIABLES if n in environ),
        )
        state = self.inspect_request(request, environment)
        if state.folder is not None and request.command is not None:
            folder = replace(state.folder, container_path=mount_point(request.command.folder))
            folder = with_setup_state(self.system, image or "", request.command, folder)
            state = replace(state, folder=folder)
        name = image or f"built from {self.checkout.name}/Dockerfile"
        gpus = len(self.system.gpus) if project.has_gpus(service) else 0
        return replace(
            state,
            image=ImageState(name, project.has_image(image), packages),
            gpus=gpus,
            queue=self.queue_state(request, gpus, QUEUE),
            gpu_remedy="`runner doctor --fix` adds the GPUs of this machine"
            if len(self.system.gpus) > gpus
            else "",
        )

    def check_program(self, request: CommandRequest) -> None:
        """Look the program up in the image. Raises RunnerError."""
        check_image_program(self.system, self.project.image("train") or "", request)

    def start(self, plan: Plan) -> LaunchHandle:
        """Write missing settings to .env, build missing images, start the container."""
        self._prepare_container(plan)
        container = container_name(plan)
        start = self._detach if plan.detach else self._attach
        with self._starting(plan):
            self.containers.remove_ended(plan.run)
            started = time.time()
            if not plan.detach:
                hold_signals()
            start(plan, self.project.service_of(plan.job), container)
            launch = LaunchHandle.of(plan, self.name, container, started=started)
            self._record(plan, launch)
        return launch

    def _prepare_container(self, plan: Plan) -> None:
        for line in write_settings(self.system, self.checkout, only_missing=True):
            self.cli.info(line)
        for volume in plan.volumes:  # the engine would create a missing folder as root
            if volume.writable:
                Path(volume.host_path).mkdir(parents=True, exist_ok=True)
        image = plan.image.name if plan.image else ""
        if plan.image is not None and not plan.image.is_built:
            base = self.project.image(self.project.service_of(plan.job)) or image
            if not (plan.image.packages and self.project.has_image(base)):
                self._build(base)
            if plan.image.packages:
                add_packages(self.system, self.cli, base, plan.image)
        mounted = [self.checkout / COMPOSE_FILE, self.volumes.checkpoints]
        mounted += [Path(volume.host_path) for volume in plan.volumes if volume.name not in VOLUMES]
        mounted += [Path(plan.folder.host_path)] if plan.folder is not None else []
        check_shared_files(self.system, image, mounted)
        if plan.folder is not None:
            prepare_mounts(plan.folder, self.checkout)
            if plan.folder.setup:
                ensure_setup_image(self.system, self.cli, image, plan.folder)

    def open_shell(
        self, request: CommandRequest, is_command: bool, idle_s: float, yes: bool
    ) -> int:
        """Run the command in a container, or open its shell or that of a lost connection.

        Compose may end a container with its client. So a shell's container starts detached and
        waits for `docker exec`.
        """
        run, argv = request.run, request.command.argv
        is_checkout = is_plain(request, self.checkout) and not request.target_options.names()
        if is_checkout and is_command:
            return run_service(self.cli, "shell", argv)
        plan = self.plan(request, self.inspect(request))
        if is_command:
            self._prepare_container(plan)
            flags = ["--rm", *([] if self.cli.is_terminal else ["-T"])]
            environ = {**self.cli.environ, **self._compose_environment(plan)}
            return follow_process(environ, self._run_command(plan, "shell", *flags), self.checkout)
        if self.containers.active(run):
            self.cli.info(f"attaching to {run}")
        else:
            waiting = replace(plan.process, command=("sleep", "infinity"))
            if is_checkout:
                waiting = replace(waiting, environment=())
            waits = replace(plan, process=waiting, folder=None if is_checkout else plan.folder)
            self._prepare_container(waits)
            self._detach(waits, "shell", container_name(waits))
        code = self.enter(run, argv if is_checkout else plan.process.command)
        for container in self.containers.active(run):
            self.system.call(["docker", "rm", "--force", container.id])
        return code

    def active_containers(self, run: str) -> list[Container]:
        """Return the active containers of the run, also of one that `docker compose up` started."""
        if active := self.containers.active(run):
            return active
        record = read_record(self.volumes.run(run))
        host = record.attempts[-1].host if record and record.attempts else ""
        return [container for container in container_named(self.system, host) if container.alive]

    def remove(self, path: str) -> None:
        """Delete a folder of the checkpoints volume, and the containers of a run's folder."""
        super().remove(path)
        self.containers.remove_ended(path)

    def stop(self, run: str, force: bool = False) -> bool:
        """Stop the run's container. Raises RunnerError without an engine."""
        self._check_engine()
        return super().stop(run, force)

    def _check_engine(self) -> None:
        if self.system.engine.problem:
            line = self.cli.line.replace("runner local", "runner host", 1)
            hint = f"\nto run without a container: {line}" if line != self.cli.line else ""
            raise RunnerError(
                f"{self.system.engine.problem}; run `runner doctor` for details{hint}"
            )

    def _prober(self, run: str | None) -> ProbeLaunch:
        if not (self.checkout / "volumes").is_dir() or self.system.engine.problem:
            return lambda launch: (False, None)
        return self.containers.prober(run)

    def _wait(self, launch: LaunchHandle) -> int:
        """Wait for Compose, then for the container, which lasts longer if its output is closed."""

        def resize(number: int, _: object) -> None:  # the docker of Compose draws on the terminal
            with suppress(ProcessLookupError):
                os.killpg(self._processes[launch.id].pid, number)

        with signal_handler(resize, signal.SIGWINCH):
            code = super()._wait(launch)
        self._messages.join(DRAIN_TIMEOUT_S)
        container = self.containers.wait_and_remove(launch.id)
        return code if container is None or container.code is None else container.code

    def _interrupt(self, launch: LaunchHandle, received: signal.Signals) -> bool:
        name = "INT" if received == signal.SIGINT else "TERM"
        if self.system.call(["docker", "kill", f"--signal={name}", launch.id]).code == 0:
            return True
        self._processes[launch.id].terminate()  # compose has not created the container yet
        return False

    def _kill(self, launch: LaunchHandle) -> None:
        self.system.call(["docker", "kill", launch.id])

    def _build(self, image: str) -> None:
        """Build the image, or pull the one that GPT_RUNNER_IMAGE names."""
        if self.cli.environ.get(IMAGE_VARIABLE) == image:
            self.cli.info(f"pulling {image}")
            if problem := transfer_image(self.system, "pull", image):
                raise RunnerError(f"could not pull {image} ({IMAGE_VARIABLE}); {problem}")
            return
        self.cli.info("building the image; this takes some minutes, once")
        command = self.project.command("build", "train")  # all services share one image
        if self.system.run_visibly(command, cwd=self.checkout):
            raise RunnerError("the image was not built; fix the error above and try again")

    def _run_command(self, plan: Plan, service: str, *options: str) -> list[str]:
        args = [*options, *self.containers.labels(plan.run, plan.job)]
        image = plan.image.name if plan.image else ""
        environment = with_image_digest(dict(plan.process.environment), self.system, image)
        for name, value in environment.items():
            args += ["-e", f"{name}={value}"]
        for name in plan.process.secrets:
            args += ["-e", name]  # compose takes the value from its own environment
        if plan.process.publish:
            address = plan.process.publish.rsplit(":", 2)[0]
            args += ["--publish", plan.process.publish, "-e", f"PUBLISHED_AT={address}"]
        for volume in plan.volumes:
            if volume.name not in VOLUMES:
                mode = "rw" if volume.writable else "ro"
                args += ["-v", f"{volume.host_path}:{volume.container_path}:{mode}"]
        if plan.folder is not None:
            args += [word for bind in bind_mounts(plan.folder) for word in ("-v", bind)]
        return self.project.command("run", *args, service, *plan.process.command)

    def _compose_environment(self, plan: Plan) -> dict[str, str]:
        """Return variables for Compose itself: the secrets' values, and the run's own image."""
        variables = secret_values(plan.process.secrets, self.cli.environ, self.checkout)
        if plan.image is not None and plan.image.packages:
            variables[IMAGE_VARIABLE] = plan.image.name
        if plan.folder is not None and plan.folder.setup:
            image = plan.image.name if plan.image else ""
            variables[IMAGE_VARIABLE] = setup_image(self.system, image, plan.folder)
        return variables

    def _attach(self, plan: Plan, service: str, container: str) -> None:
        on_terminal = self.cli.is_terminal and not plan.as_json
        options = ["--name", container, *([] if on_terminal else ["-T"])]
        environ = {**self.system.environ, **self._compose_environment(plan)}
        process = subprocess.Popen(
            self._run_command(plan, service, *options),
            cwd=self.checkout,
            env=environ,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._processes[container] = process
        self._messages = threading.Thread(target=_print_messages, args=(process,), daemon=True)
        self._messages.start()

    def _detach(self, plan: Plan, service: str, container: str) -> None:
        answer = self.system.call(
            self._run_command(plan, service, "-d", "--name", container),
            cwd=self.checkout,
            timeout_s=STOP_TIMEOUT_S,
            extra_env=self._compose_environment(plan),
        )
        if answer.code:
            raise RunnerError(f"Compose could not start the container: {answer.last_line}")


def compose_system(cli: CliContext, checkout: Path) -> System:
    """Return the programs for Compose in ``checkout``, whose compose file reads PWD."""
    return System({**cli.environ, "PWD": str(checkout)})


def run_service(
    cli: CliContext, service: str, argv: tuple[str, ...], is_server: bool = False
) -> int:
    """Run a container of ``service`` on the terminal and return its exit status.

    ``is_server`` publishes the service's ports and makes Ctrl-C a success.
    """
    checkout = find_checkout(cli.cwd)
    system = compose_system(cli, checkout)
    if system.engine.problem:
        raise RunnerError(f"{system.engine.problem}; run `runner doctor` for details")
    for line in write_settings(system, checkout, only_missing=True):
        cli.info(line)
    folders = volumes(checkout, {})
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    project = ComposeProject(system, checkout)
    if image := project.built_image(project.service_of(service)):
        check_shared_files(system, image, (checkout / COMPOSE_FILE, folders.checkpoints))
    options = [*["--service-ports"] * is_server, *["-T"] * (not cli.is_terminal)]
    command = project.command("run", "--rm", *options, service, *argv)
    return follow_process(cli.environ, command, checkout, is_server)


def _print_messages(process: subprocess.Popen[bytes]) -> None:
    """Print what Compose and the job write to stderr, without the status of a failed job.

    Compose 1.29 prints that as an error of its own, such as "ERROR: 101".
    """
    assert process.stderr is not None
    held = b""
    while chunk := os.read(process.stderr.fileno(), CHUNK_BYTES):
        text = held + chunk
        last = STATUS_LINE.search(text)
        held = last[0] if last else b""
        _print_bytes(text.removesuffix(held))
    last = STATUS_LINE.search(held)
    if last and int(last[1]) != process.wait():
        _print_bytes(held)


def _print_bytes(text: bytes) -> None:
    with suppress(OSError):  # stderr was closed; the job continues
        while text:
            text = text[os.write(STDERR, text) :]


open_target = ComposeTarget
