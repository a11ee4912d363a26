"""Whether `runner host` can train."""

import sys
from collections.abc import Iterator

from runner.doctor.base import CheckContext, Finding
from runner.project import install_line

ORDER = 40


def check(scene: CheckContext) -> Iterator[Finding]:
    """Torch is needed on the host alone; the container has its own."""
    if scene.torch_here:
        if scene.machine.gpus:
            yield _sees_gpus(scene)
            return
        device = "the best device that torch finds"
        yield Finding("ok", f"torch is installed: `runner host` trains on {device}")
    else:
        yield Finding(
            "note",
            "torch is not installed in this Python, so `runner host` can't train; `runner local` can",
            install_line("train"),
        )


def _sees_gpus(scene: CheckContext) -> Finding:
    """Asked in a process of its own, as importing torch takes seconds; only where there is a GPU to see."""
    code = "import torch; print(torch.cuda.device_count(), torch.__version__, torch.version.cuda)"
    answer = scene.machine.call([sys.executable, "-c", code], timeout_s=60)
    if answer.code != 0:
        return Finding(
            "error", f"torch can't be imported: {answer.last_line}", install_line("train")
        )
    count, version, cuda = answer.out.split()
    if int(count) == 0:
        why = (
            "it is a build without CUDA"
            if cuda == "None"
            else f"the driver may be too old for CUDA {cuda}"
        )
        return Finding(
            "warning",
            f"torch {version} sees no GPU ({why}), so `runner host` trains on the CPU",
            f"{sys.executable} -m pip install --force-reinstall torch, or a newer NVIDIA driver",
        )
    return Finding(
        "ok",
        f"torch {version} sees {count} GPU{'s' * (int(count) > 1)}: `runner host` trains on cuda",
    )
