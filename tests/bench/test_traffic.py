"""Bytes that a compiled step moves, counted without a GPU."""

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
def test_the_loss_moves_each_logit_at_most_as_often_as_needed() -> None:
    """Allow for each logit only the passes that the loss needs.

    The product writes it, three passes read it (maximum, sum, gradient), and the gradient is
    written once and read by two products: 14 bytes in bfloat16, plus 0.8 for everything else.
    Scattering one-hot targets would add 10 bytes, for a gradient in float32.
    """
    moved = traffic(Loss(), torch.randn(TOKENS, WIDTH), torch.randint(0, ROWS, (TOKENS,)))
    bytes_per_logit = sum(sum(kernels.values()) for kernels in moved.values()) / (TOKENS * ROWS)
    print(f"{bytes_per_logit:.1f} bytes per logit")
    assert bytes_per_logit < 17
