"""Check Docker, Compose, the clock, GPUs, torch, and the disks."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from job.files import free_bytes, nearest_existing
from job.format import byte_size
from job.paths import VOLUMES
from runner.console import CliContext
from runner.doctor import CheckContext, Finding, Severity, failure, note, ok, warning
from runner.errors import RunnerError
from runner.project import COMPOSE_FILE, GPU_COMPOSE_FILE, install_line, volumes
from runner.target import known_boxes
from runner.targets.compose_project import ComposeProject
from runner.targets.remote.connection import BoxUnavailable, explain
from runner.targets.remote.target import RemoteTarget

# The oldest tested releases.
MIN_ENGINE = 20
MIN_COMPOSE = (1, 29)

# Modal and most signed requests refuse a clock that is minutes off; a run counts as active if its
# heartbeat is younger than half a minute.
MAX_CLOCK_ERROR_S = 30.0

# A container starts in a second, with many GPUs in ten.
GPU_CONTAINER_TIMEOUT_S = 60.0
IMPORT_TIMEOUT_S = 60.0

# The image alone takes about 6 GB.
LOW_DISK_BYTES, FULL_DISK_BYTES = 10e9, 1e9

ENGINE_URL = "https://docs.docker.com/engine/install"
COMPOSE_URL = "https://docs.docker.com/compose/install"
TOOLKIT_URL = (
    "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"
)


def check_engine(context: CheckContext) -> Iterator[Finding]:
    """Ask the Docker engine for its version. Without torch on the host, it is required."""
    engine = context.machine.engine
    if engine.problem:
        severity, remedy = Severity.ERROR, f"install or start Docker: {ENGINE_URL}"
        if context.has_torch:
            severity = Severity.WARNING
            remedy += "; `runner host` works without it"
        yield Finding(severity, engine.problem, remedy)
        return
    yield ok(f"Docker engine {engine.version}")
    major = engine.version.partition(".")[0]
    if major.isdecimal() and int(major) < MIN_ENGINE:
        yield warning(
            f"Docker engine {engine.version} is older than {MIN_ENGINE}",
            f"install a newer release: {ENGINE_URL}",
        )


def check_clock(context: CheckContext) -> Iterator[Finding]:
    """Compare the clock with the engine's, which may run in a virtual machine, and with records."""
    is_right = True
    remedy = "set the clock: `timedatectl set-ntp true`"
    difference = _engine_seconds(context.machine.engine.clock) - time.time()
    if abs(difference) > MAX_CLOCK_ERROR_S:
        is_right = False
        direction = "ahead of" if difference > 0 else "behind"
        yield warning(
            f"the Docker engine's clock is {abs(difference):.0f} s {direction} this machine's",
            f"{remedy}; restart Docker Desktop",
        )
    records = volumes(context.checkout, context.environ).checkpoints.glob("*/run.json")
    newest = max(records, key=lambda path: path.stat().st_mtime, default=None)
    if newest is not None and newest.stat().st_mtime > time.time() + MAX_CLOCK_ERROR_S:
        is_right = False
        yield warning(
            f"run '{newest.parent.name}' has a time in the future: the clock of this machine is "
            "wrong, or was when the run started",
            remedy,
        )
    if is_right:
        yield ok(f"clock: {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}")


def check_compose(context: CheckContext) -> Iterator[Finding]:
    """Check the compose files, the program and its version, and let it read the files."""
    names = (COMPOSE_FILE, GPU_COMPOSE_FILE)
    missing = [name for name in names if not (context.checkout / name).is_file()]
    for name in missing:
        yield failure(f"{name} is missing", f"git checkout -- {name}", file=name)
    if context.machine.program("docker") is None:
        return
    if context.machine.compose is None:
        yield failure(
            "Docker is installed without Compose",
            f"install the package docker-compose-plugin: {COMPOSE_URL}",
        )
        return
    version = context.machine.compose_version
    if _version(version) < MIN_COMPOSE:
        oldest = ".".join(map(str, MIN_COMPOSE))
        yield warning(
            f"Compose {version} is older than {oldest}", f"install a newer release: {COMPOSE_URL}"
        )
    else:
        yield ok(f"Compose {version} ({' '.join(context.machine.compose)})")
    if missing:
        return
    try:
        services = ComposeProject(context.machine, context.checkout).services
    except RunnerError as error:
        message = error.message.partition(";")[0]
        yield failure(message, "docker compose config", file=COMPOSE_FILE)
    else:
        yield ok(f"Compose services: {', '.join(services)}")


def check_boxes(context: CheckContext) -> Iterator[Finding]:
    """Check the engine, image and disk of the remote machines that this checkout has used."""
    cli = CliContext(environ=dict(context.environ), cwd=context.checkout, terminal=False)
    for box in known_boxes(context.checkout):
        target = RemoteTarget(cli, context.checkout, box)
        try:
            engine = target.system.engine
            if engine.problem:
                raise RunnerError(explain(box, engine.problem))
            image = "image built" if target.any_image == target.image else "image not built yet"
            gpus = f"{target.gpus} GPU{'s' * (target.gpus != 1)}"
            yield ok(f"remote:{box}: Docker engine {engine.version}, {gpus}, {image}")
            free = target.free_bytes()
        except (RunnerError, BoxUnavailable) as error:
            message, _, remedy = str(error).partition("; ")
            yield warning(f"remote:{message}", remedy)
            continue
        if free is not None:
            message = f"{byte_size(free)} free on the disk of remote:{box}"
            yield _disk_finding(free, message, f"run `docker system prune` on {box}")


def check_gpus(context: CheckContext) -> Iterator[Finding]:
    """Count the GPUs, and check that a container sees them. No GPU is fine: jobs run on the CPU."""
    machine = context.machine
    if not machine.gpus:
        is_mac = sys.platform == "darwin" and platform.machine() == "arm64"
        device = "mps" if is_mac else "cpu"
        yield note(f"no NVIDIA GPU; jobs on this machine run on {device}")
        return
    counts = ", ".join(f"{number} x {name}" for name, number in Counter(machine.gpus).items())
    yield ok(f"GPUs: {counts}")
    if machine.engine.problem:
        return
    if machine.engine_gives_gpus:
        yield _check_gpu_container(context, len(machine.gpus))
    else:
        yield warning(
            "Docker has no access to the GPUs; containers run on the CPU",
            f"install the NVIDIA container toolkit ({TOOLKIT_URL}), then `runner doctor --fix`",
        )


def _check_gpu_container(context: CheckContext, count: int) -> Finding:
    """Run nvidia-smi in the image: the toolkit may lack rights or fit a different driver."""
    try:
        image = ComposeProject(context.machine, context.checkout).built_image("train")
    except RunnerError:  # check_compose reports it
        image = None
    if image is None:
        return ok("Docker has the NVIDIA container toolkit; build the image to test it with a GPU")
    options = ["--rm", "--gpus", "all", "--network", "none", "--entrypoint", "nvidia-smi"]
    answer = context.machine.call(
        ["docker", "run", *options, image, "-L"], timeout_s=GPU_CONTAINER_TIMEOUT_S
    )
    visible = sum(line.startswith("GPU ") for line in answer.out.splitlines())
    if answer.code or not visible:
        return failure(
            "Docker has the NVIDIA container toolkit, but a container sees no GPU: "
            + answer.last_line,
            "sudo nvidia-ctk runtime configure --runtime=docker, then restart Docker "
            f"({TOOLKIT_URL})",
        )
    if visible < count:
        return warning(
            f"a container sees {visible} of {count} GPUs",
            "compare `nvidia-smi -L` with `docker info`",
        )
    return ok(f"a container sees {visible} GPU{'s' * (visible > 1)}")


def check_torch(context: CheckContext) -> Iterator[Finding]:
    """Check that ``runner host`` can train. The container has its own torch."""
    if not context.has_torch:
        yield note(
            "torch is not installed in this Python: `runner host` cannot train, but "
            "`runner local` can",
            install_line("train"),
        )
    elif not context.machine.gpus:
        yield ok("torch is installed: `runner host` can train")
    else:
        yield _check_torch_gpus(context)


def _check_torch_gpus(context: CheckContext) -> Finding:
    """Import torch in another process, which takes seconds."""
    code = "import torch; print(torch.cuda.device_count(), torch.__version__, torch.version.cuda)"
    answer = context.machine.call([sys.executable, "-c", code], timeout_s=IMPORT_TIMEOUT_S)
    if answer.code != 0:
        message = f"torch cannot be imported: {answer.last_line}"
        return failure(message, install_line("train"))
    count, version, cuda = answer.out.split()
    if int(count) == 0:
        reason = (
            "it is a build without CUDA"
            if cuda == "None"
            else f"the driver may be too old for CUDA {cuda}"
        )
        return warning(
            f"torch {version} sees no GPU ({reason}): `runner host` trains on the CPU",
            f"{sys.executable} -m pip install --force-reinstall torch, or update the NVIDIA driver",
        )
    gpus = f"{count} GPU{'s' * (int(count) > 1)}"
    return ok(f"torch {version} sees {gpus}: `runner host` trains on cuda")


def check_volumes(context: CheckContext) -> Iterator[Finding]:
    """Check the volumes' folders and the free disk space."""
    for folder in _default_folders(context):
        name = folder.relative_to(context.checkout).as_posix()
        if not folder.is_dir():
            yield note(f"{name} does not exist yet; the first job creates it", "", name)
        elif not os.access(folder, os.W_OK):  # Docker creates missing folders as root
            yield failure(
                f"no permission to write to {name}",
                f'sudo chown -R "$(id -u):$(id -g)" {name}',
                name,
            )
    free = free_bytes(context.checkout)
    remedy = "remove unused images and containers: `docker system prune`"
    yield _disk_finding(free, f"{byte_size(free)} free on the disk of the checkout", remedy)
    yield from _check_other_disks(context)


def _check_other_disks(context: CheckContext) -> Iterator[Finding]:
    """Check disks that CHECKPOINTS_PATH and the like, or a mount, use for a volume."""
    checked = {context.checkout.stat().st_dev}
    for name in VOLUMES:
        path = nearest_existing(getattr(volumes(context.checkout, context.environ), name))
        disk = path.stat().st_dev
        if disk not in checked:
            checked.add(disk)
            free = free_bytes(path)
            message = f"{byte_size(free)} free on the disk of {name}, {path}"
            variable = f"{name.upper()}_PATH"
            remedy = f"free space in {path}, or set {variable} to a folder on a different disk"
            yield _disk_finding(free, message, remedy)


def _disk_finding(free: int, message: str, remedy: str) -> Finding:
    if free >= LOW_DISK_BYTES:
        return ok(message)
    severity = Severity.ERROR if free < FULL_DISK_BYTES else Severity.WARNING
    return Finding(severity, message, remedy)


def fix_volumes(context: CheckContext) -> Iterator[str]:
    """Create missing folders."""
    for folder in _default_folders(context):
        if not folder.exists():
            folder.mkdir(parents=True)
            yield f"created {folder.relative_to(context.checkout).as_posix()}"


def _default_folders(context: CheckContext) -> list[Path]:
    return [context.checkout / "volumes" / name for name in VOLUMES]


def _engine_seconds(text: str) -> float:
    """Parse the engine's time; any other text counts as the right time."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return time.time()


def _version(text: str) -> tuple[int, ...]:
    parts = text.split("-")[0].split("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdecimal())
