"""Devices: choice, utilization, peak FLOP/s. Patches of torch replace a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from corpus.tasks import Question
from inference.scoring import ending_losses
from job.exit_status import UserError
from job.machine import datasheet_flops
from job.paths import CHECKOUT
from model import batches
from model import device as devices
from model.distributed import World
from tests.model.test_gpt import network

CUDA = torch.device("cuda", 1)


def test_gpu_use_asks_nvml_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    queried = []
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: queried.append(device) or 93)
    devices.gpu_use.cache_clear()
    assert [devices.gpu_use(CUDA, second) for second in (1, 1, 1, 2)] == [0.93] * 4
    assert queried == [
        CUDA,
        CUDA,
    ]  # a small network's step is shorter than the query


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("pynvml"), RuntimeError("NVML"), ValueError("MIG")]
)
def test_unknown_gpu_use_is_not_an_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(device: torch.device) -> int:
        raise error

    monkeypatch.setattr(torch.cuda, "utilization", fail)
    devices.gpu_use.cache_clear()
    assert devices.gpu_use(CUDA, 1) is None


def test_an_unusable_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(devices, "FIRST_GPU", Path("/dev/null"))
    with pytest.raises(UserError, match=r"torch \(CUDA 13.0\) can't use this machine's GPU"):
        devices.pick_device(None, 0)
    assert devices.pick_device("cpu", 0).type == "cpu"
    monkeypatch.setattr(devices, "FIRST_GPU", Path("/dev/none"))
    assert devices.pick_device(None, 0).type == "cpu"


def test_a_cpu_has_no_gpu_use() -> None:
    usage = devices.usage(torch.device("cpu"), 1)
    assert usage["gpu_use"] is None
    assert usage["memory_bytes"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.5)


def test_one_process_does_not_import_torch_distributed() -> None:
    """The import takes one of the three seconds of a trainer's start."""
    code = (
        "import sys, model.attempt\n"
        "sys.exit('torch.distributed.tensor' in sys.modules or 'sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT).returncode == 0


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 504),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA L40S", 362),
        ("Tesla T4", 65),
        ("H100!", 989),
        ("B200+", 2250),
        ("RTX-PRO-6000", 504),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA T400 4GB", None),
        ("NVIDIA L40", None),
    ],
)
def test_a_gpu_name_is_matched_by_whole_words(name: str, teraflops: float | None) -> None:
    assert datasheet_flops(name) == (teraflops and teraflops * 1e12)


class OnApple(torch.Tensor):
    """A tensor without float64, as on an Apple GPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.Tensor.cpu:
            with torch._C.DisableTorchFunctionSubclass():
                return args[0].as_subclass(torch.Tensor)
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


def test_the_validation_loss_works_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [0.1, 2.5, 3.3]
    parts = [
        (torch.tensor(loss), None, tokens) for loss, tokens in zip(losses, (32, 32, 7), strict=True)
    ]
    monkeypatch.setattr(
        batches, "validation_batches", lambda *_: [*parts, (torch.tensor(9.9), None, 0)]
    )

    class Network(torch.nn.Module):
        def forward(self, loss: torch.Tensor, _: None) -> torch.Tensor:
            return loss.as_subclass(OnApple)

    apple = type("Batches", (), {"device": torch.device("mps")})()
    loss, tokens = batches.validation_loss(Network(), apple, None, 1, World())
    in_float64 = sum(float(loss) * tokens for loss, _, tokens in parts) / 71
    assert (loss, tokens) == (pytest.approx(in_float64, rel=1e-15), 71)
    monkeypatch.setattr(batches, "validation_batches", lambda *_: [(torch.tensor(9.9), None, 0)])
    alone = type("Other", (World,), {"sum": lambda self, tensor: tensor + 1.0})()
    assert batches.validation_loss(Network(), apple, None, 1, alone) == (
        1.0,
        1,
    )  # this process has padding only


def test_multiple_choice_works_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    net, questions = network("gpt2"), [Question([1, 2], [[3], [4, 5]], 0)]
    expected = ending_losses(net, questions, 4)
    real = torch.nn.functional.cross_entropy
    monkeypatch.setattr(
        torch.nn.functional, "cross_entropy", lambda *a, **k: real(*a, **k).as_subclass(OnApple)
    )
    assert ending_losses(net, questions, 4) == expected
