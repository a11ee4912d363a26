"""Whether there are GPUs, and whether the engine can hand them out."""

import platform
import sys
from collections import Counter
from collections.abc import Iterator

from runner.doctor.base import CheckContext, Finding
from runner.errors import RunnerError
from runner.targets.compose_project import ComposeProject

ORDER = 30

PATIENCE = 60.0  # seconds: a container starts in one, with many GPUs in ten

TOOLKIT = (
    "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"
)


def check(scene: CheckContext) -> Iterator[Finding]:
    """No GPU is no fault: everything runs on the CPU too."""
    machine = scene.machine
    if not machine.gpus:
        device = "mps" if sys.platform == "darwin" and platform.machine() == "arm64" else "cpu"
        yield Finding("note", f"no NVIDIA GPU answers nvidia-smi; jobs here run on {device}")
        return
    counted = ", ".join(f"{number} x {name}" for name, number in Counter(machine.gpus).items())
    yield Finding("ok", f"GPUs: {counted}")
    if machine.engine.problem:
        return
    if machine.engine_gives_gpus:
        yield _in_a_container(scene, len(machine.gpus))
    else:
        yield Finding(
            "warning",
            "the engine can't hand out GPUs; jobs in the container run on the CPU",
            f"install the NVIDIA container toolkit ({TOOLKIT}), then `runner doctor --fix`",
        )


def _in_a_container(scene: CheckContext, count: int) -> Finding:
    """The toolkit can be there and not work (another driver, no rights): a container of ours is asked."""
    try:
        image = ComposeProject(scene.machine, scene.checkout).built_image("train")
    except RunnerError:  # a finding of its own, of another check
        image = None
    if image is None:
        return Finding(
            "ok", "the engine can hand out GPUs: it has the toolkit; tried once the image is built"
        )
    words = [
        "docker",
        "run",
        "--rm",
        "--gpus",
        "all",
        "--network",
        "none",
        "--entrypoint",
        "nvidia-smi",
    ]
    answer = scene.machine.call([*words, image, "-L"], timeout_s=PATIENCE)
    seen = sum(line.startswith("GPU ") for line in answer.out.splitlines())
    if answer.code or not seen:
        return Finding(
            "error",
            f"the engine has the NVIDIA container toolkit, and a container sees no GPU: {answer.last_line}",
            f"sudo nvidia-ctk runtime configure --runtime=docker, restart the engine ({TOOLKIT})",
        )
    if seen < count:
        return Finding(
            "warning", f"a container sees {seen} of {count} GPUs", "nvidia-smi -L; docker info"
        )
    return Finding("ok", f"a container sees {seen} GPU{'s' * (seen > 1)}")
