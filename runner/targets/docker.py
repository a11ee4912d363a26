"""The Docker engine: the compose file, containers of runs, mounts and images.

Containers are found by their labels. Works with Compose 1.29 and 2.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from job.paths import WORKSPACE
from job.user_command.persisted_paths import mirror_files, seed_volume
from job.user_command.process import missing_program
from runner.console import CliContext
from runner.errors import RunnerError, usage
from runner.jobs import JOBS
from runner.plan import FolderState, ImageState, Plan, PlannedFolder
from runner.planning.packaging import (
    SETUP_FOLDER,
    list_files,
    setup_digest,
    setup_files,
    setup_lines,
)
from runner.project import state_folder
from runner.request import LAUNCHERS, CommandRequest, UserCommand
from runner.runs.store import ProbeLaunch
from runner.system import System, is_container_id
from runner.target import LaunchHandle

CONFIG_TIMEOUT_S = 60

RUN_LABEL = "gpt-runner.run"
JOB_LABEL = "gpt-runner.job"
CHECKOUT_LABEL = "gpt-runner.project"

IMAGE_VARIABLE = "GPT_RUNNER_IMAGE"  # docker-compose.yml reads the name of the image from it
ENTRYPOINT = f"{WORKSPACE}/container/entrypoint.sh"
# The answers of registries to a user who is not logged in.
NOT_LOGGED_IN = re.compile(
    r"denied|unauthorized|forbidden|basic auth|authentication", re.IGNORECASE
)
LONGEST_WAIT_S = 20 * 86400.0  # poll(2) takes at most 24 days
NOT_FOUND = 127  # the status of `command -v` in the image's shell
SETUP_REPOSITORY = "gpt-runner-setup"  # images extended by --setup, one tag each


@dataclass(frozen=True)
class Container:
    """A container of a run. ``code`` is its exit status once it has ended."""

    id: str
    run: str
    alive: bool
    code: int | None


@dataclass(frozen=True)
class RunContainers:
    """The containers of the runs of one checkout, found by their labels."""

    system: System
    checkout: Path

    def labels(self, run: str, job: str) -> list[str]:
        """Return the options that label a new container."""
        labels = {RUN_LABEL: run, JOB_LABEL: job, CHECKOUT_LABEL: state_folder(self.checkout)}
        return [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]

    def all(self, run: str | None = None) -> list[Container]:
        """Return all containers, or those of one run, newest first; [] without an engine."""
        filters = ["--filter", f"label={CHECKOUT_LABEL}={state_folder(self.checkout)}"]
        if run is not None:
            filters += ["--filter", f"label={RUN_LABEL}={run}"]
        return _list(self.system, filters)

    def active(self, run: str) -> list[Container]:
        """Return the containers of the run that have not ended."""
        return [container for container in self.all(run) if container.alive]

    def newest(self, run: str | None = None) -> dict[str, Container]:
        """Return the newest container of each run; one that is active, if there is one."""
        oldest_first = reversed(self.all(run))
        return {c.run: c for c in sorted(oldest_first, key=lambda container: container.alive)}

    def prober(self, run: str | None = None) -> ProbeLaunch:
        """Return a function that tells a launch's state by the newest container of its run."""
        newest = self.newest(run)

        def probe(launch: LaunchHandle) -> tuple[bool, int | None]:
            container = newest.get(launch.run)
            return (container.alive, container.code) if container is not None else (False, None)

        return probe

    def remove_ended(self, run: str) -> None:
        """Remove the containers of the run that have ended."""
        if ended := [container.id for container in self.all(run) if not container.alive]:
            self.system.call(["docker", "rm", *ended])

    def wait_and_remove(self, name: str) -> Container | None:
        """Wait for the end of a container, and remove it; None if it was not created."""
        self.system.call(["docker", "wait", name], timeout_s=LONGEST_WAIT_S)
        ended = _list(self.system, ["--filter", f"name={name}"])
        self.system.call(["docker", "rm", name])
        return ended[0] if ended else None

    def output(self, run: str, lines: int) -> list[str]:
        """Return the end of the newest container's output; [] if the engine no longer has it."""
        for container in self.all(run):
            answer = self.system.call(["docker", "logs", "--tail", str(lines), container.id])
            return (answer.out + answer.err).splitlines()[-lines:]
        return []


@dataclass
class ComposeProject:
    """Compose in one checkout, whose ``.env`` selects the files (COMPOSE_FILE)."""

    system: System
    checkout: Path

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of Compose. Raises RunnerError if it is not installed."""
        if self.system.compose is None:
            raise RunnerError(
                "docker is installed and Compose is not; install the plugin docker-compose-plugin, "
                "then check it with `runner doctor`"
            )
        program = self.system.program(self.system.compose[0])
        return [str(program), *self.system.compose[1:], *arguments]

    @cached_property
    def config(self) -> dict[str, Any]:
        """Return the merged compose file. Raises RunnerError if Compose refuses it."""
        # `config` omits a service with a profile unless the profile is named.
        profiles = [word for job in (*JOBS, "shell", "tensorboard") for word in ("--profile", job)]
        answer = self.system.call(
            self.command(*profiles, "config"), cwd=self.checkout, timeout_s=CONFIG_TIMEOUT_S
        )
        if answer.code:
            raise RunnerError(
                f"Compose can't read its files: {answer.last_line}; run `runner doctor` for details"
            )
        import yaml

        return yaml.safe_load(answer.out) or {}

    @property
    def services(self) -> dict[str, Any]:
        """Return the settings of each service."""
        return self.config.get("services") or {}

    def service_of(self, job: str) -> str:
        """Return the service of a job; ``train`` runs the jobs without their own."""
        return job if job in self.services else "train"

    def image(self, service: str) -> str | None:
        """Return the name of the image; None if Compose generates one."""
        name = (self.services.get(service) or {}).get("image")
        return str(name) if name else None

    def has_image(self, name: str | None) -> bool:
        """Return True if the image is built.

        False for a generated name (None), which can't be looked up.
        """
        return name is not None and bool(image_id(self.system, name))

    def built_image(self, service: str) -> str | None:
        """Return the name of a service's image if it is built."""
        name = self.image(service)
        return name if self.has_image(name) else None

    def has_gpus(self, service: str) -> bool:
        """Return True if the service reserves GPUs, as docker-compose.gpu.yml makes it."""
        resources = ((self.services.get(service) or {}).get("deploy") or {}).get("resources") or {}
        devices = (resources.get("reservations") or {}).get("devices") or []
        return any("gpu" in (device.get("capabilities") or []) for device in devices)


def container_name(plan: Plan) -> str:
    """Return a new name for the container of the plan."""
    return f"gpt-runner-{plan.run or plan.job}-{uuid.uuid4().hex[:8]}"


def exec_command(cli: CliContext, container: str, argv: Sequence[str]) -> list[str]:
    """Return the command that runs ``argv`` at the terminal in the container, as its user."""
    flags = "-it" if cli.is_terminal else "-i"
    return ["docker", "exec", flags, container, "bash", ENTRYPOINT, *argv]


def container_named(system: System, id: str) -> list[Container]:
    """Return the container with that id, also one that `docker compose up` started."""
    return _list(system, ["--filter", f"id={id}"]) if is_container_id(id) else []


def _list(system: System, filters: list[str]) -> list[Container]:
    shape = f'{{{{.ID}}}}\t{{{{.Label "{RUN_LABEL}"}}}}\t{{{{.Status}}}}'
    answer = system.call(["docker", "ps", "--all", "--no-trunc", *filters, "--format", shape])
    if answer.code:
        return []
    containers = []
    for line in answer.out.splitlines():
        id, run, status = line.split("\t")
        exited = re.match(r"Exited \((\d+)\)", status)
        has_ended = exited is not None or status.startswith(("Dead", "Removal"))
        containers.append(Container(id, run, not has_ended, int(exited[1]) if exited else None))
    return containers


def bind_mounts(folder: PlannedFolder) -> list[str]:
    """Return values of ``-v``: the folder, and over it each persisted path from its volume."""
    mounts = {folder.host_path: folder.container_path}
    mounts |= {path.host_path: f"{folder.container_path}/{path.path}" for path in folder.persisted}
    return [f"{host_path}:{container_path}:rw" for host_path, container_path in mounts.items()]


def prepare_mounts(folder: PlannedFolder, checkout: Path) -> None:
    """Create both ends of each persisted path, and copy the folder's own files to the volume.

    The engine would create missing folders as root. Raises RunnerError if a path is a file.
    """
    if not folder.persisted:
        return
    listing = list_files(Path(folder.host_path), checkout)
    for persisted in folder.persisted:
        path, volume_path = Path(folder.host_path) / persisted.path, Path(persisted.host_path)
        if path.is_file():
            raise RunnerError(
                f"{path} is a file, and --persist needs a folder; name the folder that contains it"
            )
        if not path.is_symlink():
            path.mkdir(parents=True, exist_ok=True)
        volume_path.mkdir(parents=True, exist_ok=True)
        seed_volume(path, listing.below(persisted.path), volume_path)
        if not path.is_symlink():  # the mount would hide the files that .gitignore names
            mirror_files(path, volume_path)


def check_shared_files(system: System, image: str, paths: Iterable[Path]) -> None:
    """Raise RunnerError if the engine does not see ``paths``.

    The engine of another machine, or of the host of this container, would mount empty folders.
    A container that is only created takes 0.1 s.
    """
    quoted = [str(path).replace('"', '""') for path in paths]  # --mount takes CSV
    mounts = [f'--mount=type=bind,"src={path}",dst=/probe/{n}' for n, path in enumerate(quoted)]
    answer = system.call(["docker", "create", *mounts, image])
    if answer.code == 0:
        system.call(["docker", "rm", answer.out.strip()])
    elif missing := re.search(r"bind source path does not exist: (.*)", answer.err):
        raise RunnerError(
            f"the Docker engine does not see {missing[1]}: it runs on another machine or outside "
            "this container (DOCKER_HOST, or a mounted socket); start the runner where the engine "
            "runs, or run the job without Docker: `runner host`"
        )


def check_image_program(system: System, image: str, request: CommandRequest) -> None:
    """Raise RunnerError, exit status 2, if the image lacks the program of the command.

    An image that --setup extends, a given PATH and a program of each image are not checked: the
    container takes half a second.
    """
    command, variables = request.command, dict(request.target_options.environment)
    program = command.argv[0]
    if setup_lines(command) or "PATH" in variables or "/" in program or LAUNCHERS.match(program):
        return
    look_up = ["--entrypoint", "sh", image, "-c", 'command -v "$0"', program]
    if system.call(["docker", "run", "--rm", *look_up]).code == NOT_FOUND:
        raise usage(missing_program(program, command.folder, path=""))


def image_id(system: System, name: str) -> str:
    """Return the id of an image; '' if the engine does not have it."""
    answer = system.call(["docker", "image", "inspect", "--format", "{{.Id}}", name])
    return answer.out.strip() if answer.code == 0 else ""


def setup_image(system: System, image: str, folder: PlannedFolder) -> str:
    """Return the name of ``image`` extended by the folder's setup.

    It changes when either changes.
    """
    digest = setup_digest(Path(folder.host_path), folder.setup, image_id(system, image))
    return f"{SETUP_REPOSITORY}:{digest}"


def with_setup_state(
    system: System, image: str, command: UserCommand, state: FolderState
) -> FolderState:
    """Return ``state`` of the command's folder, with ``is_setup_built`` for ``image``."""
    folder = PlannedFolder(str(command.folder), state.container_path, setup=state.setup)
    is_built = not folder.setup or bool(image_id(system, setup_image(system, image, folder)))
    return replace(state, is_setup_built=is_built)


def ensure_setup_image(
    system: System, cli: CliContext, image: str, folder: PlannedFolder, box: str = ""
) -> str:
    """Return the name of the extended image, built if it is missing.

    Raises RunnerError if a setup line fails.
    """
    name = setup_image(system, image, folder)
    if not image_id(system, name):
        place = f" on {box}" if box else ""
        cli.info(f"extending the image with the setup{place}, once")
        source = Path(folder.host_path)
        files = {path: source / path for path in setup_files(source, folder.setup)}
        lines = [f"FROM {image}", f"COPY . {SETUP_FOLDER}", f"WORKDIR {SETUP_FOLDER}"]
        lines += [*(f"RUN {line}" for line in folder.setup), f"WORKDIR {WORKSPACE}", ""]
        context = build_context(files, "\n".join(lines))
        if system.run_visibly(["docker", "build", "--tag", name, "-"], context):
            raise RunnerError(
                "the setup failed, and the run did not start; fix the error above and try again"
            )
    return name


def build_context(files: Mapping[str, Path], dockerfile: str | None = None) -> bytes:
    """Return a build context as a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, path in files.items():
            archive.add(path, name)
        if dockerfile is not None:
            entry = tarfile.TarInfo("Dockerfile")
            entry.size = len(dockerfile.encode())
            archive.addfile(entry, io.BytesIO(dockerfile.encode()))
    return buffer.getvalue()


def transfer_image(system: System, verb: str, image: str, machine: str = "") -> str:
    """Run `docker push` or `docker pull`; return the remedy if it fails, else ''.

    ``machine`` is the box on which ``system`` runs it.
    """
    done = subprocess.run(
        system.command_line(["docker", verb, image]),
        env=dict(system.environ),
        stdout=sys.__stderr__,  # shows the progress; stdout belongs to the job
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    print(done.stderr, end="", file=sys.stderr)
    if done.returncode == 0:
        return ""
    if NOT_LOGGED_IN.search(done.stderr):
        login = login_command(image)
        return f"log in first: `{f'ssh -t {machine} {login}' if machine else login}`"
    place = f" on {machine}" if machine else ""
    return f"check the image's name and the connection to its registry{place}, then try again"


def login_command(image: str) -> str:
    """Return the command that logs in to the registry of ``image``."""
    registry, slash, _ = image.partition("/")
    is_hub = not slash or (registry != "localhost" and not {".", ":"} & {*registry})
    return "docker login" if is_hub else f"docker login {registry}"


def image_digest(system: System, name: str) -> str:
    """Return the digest by which a registry knows the image, else its id."""
    answer = system.call(
        ["docker", "image", "inspect", "--format", "{{json .RepoDigests}} {{.Id}}", name]
    )
    digests, _, image_id = answer.out.strip().rpartition(" ")
    names = json.loads(digests or "null") or [image_id]
    return str(names[0])


def with_image_digest(variables: Mapping[str, str], system: System, image: str) -> dict[str, str]:
    """Return the job's variables with the image's digest in RUN_LAUNCH, for the run's record."""
    if "RUN_LAUNCH" not in variables:
        return dict(variables)
    launch = {**json.loads(variables["RUN_LAUNCH"]), "image_digest": image_digest(system, image)}
    return {**variables, "RUN_LAUNCH": json.dumps(launch)}


def add_packages(system: System, cli: CliContext, base: str, image: ImageState) -> None:
    """Build ``image`` on ``base``, with further packages. Raises RunnerError if that fails."""
    cli.info(f"adding {' '.join(image.packages)} to the image, once")
    text = f"FROM {base}\nRUN pip install {shlex.join(image.packages)}\n"
    if system.run_visibly(["docker", "build", "--tag", image.name, "-"], text.encode()):
        raise RunnerError("adding the packages failed; fix the error above and try again")
