"""The chunked loss: value and both gradients in each of its forms, with and without the softcap."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from job.paths import CHECKOUT
from model.loss import chunked_cross_entropy, cross_entropy, exact_loss, pick_loss
from tests.model.loss_errors import CAP, COLUMNS, IGNORED, TOLERANCES, form_errors

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed; pip install -e '.[dev]'"
)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("cap", [None, CAP])
def test_chunks_change_nothing(chunk: int, cap: float | None) -> None:
    torch.manual_seed(0)
    x, weight = (
        torch.randn(64, 16, dtype=torch.float64),
        torch.randn(50, 16, dtype=torch.float64) * 3,
    )
    targets = torch.randint(0, 50, (64,))
    targets[::5] = IGNORED
    results = []
    for loss_of in (cross_entropy, lambda *a: chunked_cross_entropy(*a, chunk)):
        a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = loss_of(a, b, targets, cap)
        (3 * loss).backward()
        results.append((loss.detach(), a.grad, b.grad))
    for full, parts in zip(*results, strict=True):
        assert torch.allclose(full.double(), parts.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("columns", COLUMNS)
def test_the_form_in_torch_agrees_with_float64(columns: int, dtype: str) -> None:
    errors = form_errors(exact_loss, columns, getattr(torch, dtype))
    assert max(errors["evaluated"], errors["trained"]) < 1e-6
    assert errors["gradient"] < TOLERANCES[dtype]


@needs_triton
def test_the_kernel_agrees_with_float64() -> None:
    command = [sys.executable, "-m", "tests.model.loss_errors"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    out = subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    *cases, last = map(json.loads, out.splitlines())
    assert len(cases) == len(COLUMNS) * len(TOLERANCES)
    for case in cases:
        assert max(case["evaluated"], case["trained"]) < 1e-6, case
        assert case["gradient"] < TOLERANCES[case["dtype"]], case
    assert last["chunked"] < 1e-6
    assert last["fp8"] < 0.1
    assert last["in_place"]  # the gradient is written over the logits


@needs_triton
@pytest.mark.parametrize("wants_grad", [True, False])
def test_the_kernel_compiles_for_hopper(
    wants_grad: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton compiles without a GPU. A step approximates tanh, an evaluation does not."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from model import loss_kernel

    names = ["logits", "targets", "count", "losses"]
    types = dict(zip(names, ["*bf16", "*i64", "*i64", "*fp32"], strict=True))
    constants = {"grads": None, "IGNORED": IGNORED, "V": 50304, "CAP": CAP}
    constants |= {"WANTS_GRAD": wants_grad, "FP8_SCALE": 1.0}
    constants |= {"IS_APPROXIMATE": wants_grad, "BLOCK": loss_kernel.BLOCK}
    signature = types | dict.fromkeys(constants, "constexpr")
    attributes = {(i,): [["tt.divisibility", 16]] for i in range(len(names))}
    source = ASTSource(loss_kernel._row_kernel, signature, constants, attributes)
    target, options = GPUTarget("cuda", 90, 32), {"num_warps": loss_kernel.WARPS}
    ptx = compile(source, target=target, options=options).asm["ptx"]
    assert ("tanh.approx" in ptx) == wants_grad
    assert ("st.global.v4" in ptx) == wants_grad  # 16 bytes at a time, in spite of the mask


def test_the_form_depends_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("model.loss.find_spec", lambda name: None)
    cuda = torch.device("cuda")
    assert pick_loss(torch.device("cpu"), CAP) is exact_loss
    assert pick_loss(torch.device("mps"), CAP) is exact_loss
    assert pick_loss(cuda, None) is exact_loss
    assert pick_loss(cuda, CAP) is exact_loss  # without Triton
    monkeypatch.setattr("model.loss.find_spec", lambda name: "installed")
    capability = (7, 5)
    assert pick_loss(cuda, CAP) is exact_loss
    capability = (9, 0)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert pick_loss(cuda, CAP) is exact_loss


@needs_triton
def test_an_nvidia_gpu_gets_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert pick_loss(torch.device("cuda"), CAP).__name__ == "kernel_loss"


def test_the_loss_is_zero_if_all_targets_are_ignored() -> None:
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(9, 8)
    loss = chunked_cross_entropy(x, weight, torch.full((4,), IGNORED), None, 2)
    assert loss.item() == 0.0


def test_an_evaluation_computes_no_gradient() -> None:
    weight, targets = torch.randn(50, 16, requires_grad=True), torch.randint(0, 50, (64,))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loss = chunked_cross_entropy(torch.randn(64, 16), weight, targets, CAP, 16)
    assert counter.get_total_flops() == 2 * 64 * 50 * 16
    assert loss > 0
