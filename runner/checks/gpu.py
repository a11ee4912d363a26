"""Whether there are GPUs, and whether the engine can hand them out."""

import platform
import sys
from collections import Counter
from collections.abc import Iterator

from runner.checks.finding import Finding, Scene

ORDER = 30

TOOLKIT = "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"


def check(scene: Scene) -> Iterator[Finding]:
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
        yield Finding("ok", "the engine can hand out GPUs")
    else:
        yield Finding(
            "warning",
            "the engine can't hand out GPUs; jobs in the container run on the CPU",
            f"install the NVIDIA container toolkit ({TOOLKIT}), then `runner doctor --fix`",
        )
