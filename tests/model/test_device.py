"""What the trainer asks of a device. No GPU is at hand: torch's own answers are put in its place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from job.exit_status import UserError
from job.locations import CHECKOUT
from model import device as devices

CUDA = torch.device("cuda", 1)


def test_how_busy_a_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: asked.append(device) or 93)
    devices.gpu_use.cache_clear()
    assert [devices.gpu_use(CUDA, second) for second in (1, 1, 1, 2)] == [0.93] * 4
    assert asked == [CUDA, CUDA]  # once a second: a small network's step is shorter than the question


@pytest.mark.parametrize("error", [ModuleNotFoundError("pynvml"), RuntimeError("NVML"), ValueError("MIG")])
def test_a_gpu_that_nobody_counts_ends_no_run(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(device: torch.device) -> int:
        raise error

    monkeypatch.setattr(torch.cuda, "utilization", fail)
    devices.gpu_use.cache_clear()
    assert devices.gpu_use(CUDA, 1) is None


def test_a_gpu_that_torch_can_not_use_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(devices, "GPU", Path("/dev/null"))
    with pytest.raises(UserError, match=r"there is a GPU, and torch \(CUDA 13.0\) can't use it"):
        devices.pick_device(None, 0)
    assert devices.pick_device("cpu", 0).type == "cpu"
    monkeypatch.setattr(devices, "GPU", Path("/dev/none"))
    assert devices.pick_device(None, 0).type == "cpu"


def test_a_cpu_has_none() -> None:
    assert devices.gpu_use(torch.device("cpu"), 1) is None


def test_one_process_does_not_import_what_only_several_need() -> None:
    """A second of the three that a trainer's start took."""
    code = "import sys, model.train; sys.exit('torch.distributed.tensor' in sys.modules or 'sympy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT).returncode == 0
