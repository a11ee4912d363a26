"""Check Docker, Compose, the clock, GPUs, torch, the boxes and the Modal account."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

from job.format import byte_size, count
from runner.console import CliContext
from runner.doctor import CheckContext, Finding, Severity, failure, note, ok, warning
from runner.doctor.storage import disk_finding
from runner.errors import RunnerError
from runner.project import (
    COMPOSE_FILE,
    GPU_COMPOSE_FILE,
    INSTALLED,
    install_line,
    own_requirement,
    pip_install,
)
from runner.target import known_boxes
from runner.targets.docker import ComposeProject
from runner.targets.modal.client import NEW_TOKEN, check_proxy, check_reachable, is_configured
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
MODAL_TIMEOUT_S = 15.0  # Modal's client itself would try for a minute

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
    records = context.volumes.checkpoints.glob("*/run.json")
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
    """Check the compose files, the program, its version, and that it can read the files."""
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
            gpus = count(target.gpus, "GPU")
            yield ok(f"remote:{box}: Docker engine {engine.version}, {gpus}, {image}")
            free = target.free_bytes()
        except (RunnerError, BoxUnavailable) as error:
            message, _, remedy = str(error).partition("; ")
            yield warning(f"remote:{message}", remedy)
            continue
        if free is not None:
            message = f"{byte_size(free)} free on the disk of remote:{box}"
            yield disk_finding(free, message, f"run `docker system prune` on {box}")


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


def _check_gpu_container(context: CheckContext, gpus: int) -> Finding:
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
    if visible < gpus:
        return warning(
            f"a container sees {visible} of {gpus} GPUs",
            "compare `nvidia-smi -L` with `docker info`",
        )
    return ok(f"a container sees {count(visible, 'GPU')}")


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
    gpus, version, cuda = answer.out.split()
    if int(gpus) == 0:
        reason = (
            "it is a build without CUDA"
            if cuda == "None"
            else f"the driver may be too old for CUDA {cuda}"
        )
        return warning(
            f"torch {version} sees no GPU ({reason}): `runner host` trains on the CPU",
            f"{sys.executable} -m pip install --force-reinstall torch, or update the NVIDIA driver",
        )
    return ok(f"torch {version} sees {count(int(gpus), 'GPU')}: `runner host` trains on cuda")


def _engine_seconds(text: str) -> float:
    """Parse the engine's time; any other text counts as the right time."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return time.time()


def _version(text: str) -> tuple[int, ...]:
    parts = text.split("-")[0].split("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdecimal())


def check_modal(context: CheckContext) -> Iterator[Finding]:
    """Check the token. A missing one is fine: everything else works without Modal."""
    try:
        if not is_configured(context.environ):
            yield note("no Modal token; only `runner cloud` needs one", NEW_TOKEN)
            return
        check_proxy(context.environ)
    except RunnerError as error:
        message, _, remedy = error.message.partition("; ")
        yield failure(message, remedy)
        return
    try:
        check_reachable(context.environ)
    except RunnerError as error:
        message = error.message.partition(";")[0]
        remedy = "check the network; everything but `runner cloud` works without it"
        yield warning(message, remedy)
        return
    yield from _check_account(context)


def _check_account(context: CheckContext) -> Iterator[Finding]:
    """Ask Modal in another process, which can be killed, and which alone imports `modal`."""
    python_path = f"{INSTALLED}:{context.environ.get('PYTHONPATH', '')}".rstrip(":")
    answer = context.machine.call(
        [sys.executable, "-m", "runner.targets.modal.inspect"],
        timeout_s=MODAL_TIMEOUT_S,
        extra_env={"PYTHONPATH": python_path},
    )
    if answer.code == 124:
        message = f"Modal did not answer within {MODAL_TIMEOUT_S:.0f} s"
        yield warning(message, "run `runner doctor` again later")
        return
    try:
        account = json.loads(answer.out)
    except ValueError:
        message = f"Modal's client failed: {answer.last_line}"
        remedy = pip_install("--upgrade", own_requirement("modal"))
        yield warning(message, remedy)
        return
    if account["problem"]:
        message, _, remedy = account["problem"].partition("; ")
        yield failure(message, remedy or NEW_TOKEN)
        return
    yield ok("Modal accepts the token")
    for name, state in account["volumes"].items():
        if state == "exists":
            yield ok(f"volume {name} exists on Modal")
        elif state == "missing":
            message = f"volume {name} does not exist on Modal yet; the first launch creates it"
            yield note(message)
        else:
            volume = name.rpartition("-")[2]
            yield warning(f"volume {name}: {state}", f"runner ls {volume}")
