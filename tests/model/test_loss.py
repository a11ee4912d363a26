"""The chunked loss is the loss: value and both gradients, with and without the softcap."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.loss import chunked_cross_entropy, cross_entropy


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("cap", [None, 15.0])
def test_chunks_change_nothing(chunk: int, cap: float | None) -> None:
    torch.manual_seed(0)
    x, weight = (
        torch.randn(64, 16, dtype=torch.float64),
        torch.randn(50, 16, dtype=torch.float64) * 3,
    )
    targets = torch.randint(0, 50, (64,))
    targets[::5] = -100
    results = []
    for loss_of in (cross_entropy, lambda *a: chunked_cross_entropy(*a, chunk)):
        a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = loss_of(a, b, targets, cap, -100)
        (3 * loss).backward()
        results.append((loss.detach(), a.grad, b.grad))
    for whole, parts in zip(*results, strict=True):
        assert torch.allclose(whole.double(), parts.double(), rtol=1e-4, atol=1e-6)


def test_no_target_counts() -> None:
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(9, 8)
    loss = chunked_cross_entropy(x, weight, torch.full((4,), -100), None, -100, 2)
    assert loss.item() == 0.0


def test_an_evaluation_computes_no_gradient() -> None:
    weight, targets = torch.randn(50, 16, requires_grad=True), torch.randint(0, 50, (64,))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loss = chunked_cross_entropy(torch.randn(64, 16), weight, targets, 15.0, -100, 16)
    assert counter.get_total_flops() == 2 * 64 * 50 * 16
    assert loss > 0
