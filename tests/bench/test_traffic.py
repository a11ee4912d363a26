"""The bytes that a compiled step moves, counted without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench.traffic import traffic
from model.loss import chunked_cross_entropy

TOKENS, WIDTH, ROWS = 256, 32, 4096


class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Parameter(torch.randn(ROWS, WIDTH))

    def forward(self, x_ND: Tensor, targets_N: Tensor) -> Tensor:
        return chunked_cross_entropy(x_ND, self.head, targets_N, 15.0, -100, TOKENS // 2)


@pytest.mark.slow
def test_the_loss_moves_each_logit_no_more_often_than_it_must() -> None:
    """Written by the product, read for the maximum, the sum and the gradient, which is written and read by two products:
    14 bytes in bfloat16, and 0.8 for the rest. Scattered, one-hot targets would add 10: the gradient in float32."""
    moved = traffic(Loss(), torch.randn(TOKENS, WIDTH), torch.randint(0, ROWS, (TOKENS,)))
    bytes_a_logit = sum(sum(kernels.values()) for kernels in moved.values()) / (TOKENS * ROWS)
    print(f"{bytes_a_logit:.1f} bytes a logit")
    assert bytes_a_logit < 17
