"""The bytes that a compiled step moves, counted without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench.traffic import traffic
from model.loss import chunked_cross_entropy, cross_entropy

TOKENS, WIDTH, ROWS = 256, 32, 4096


class Loss(nn.Module):
    def __init__(self, chunk: int | None) -> None:
        super().__init__()
        self.head, self.chunk = nn.Parameter(torch.randn(ROWS, WIDTH)), chunk

    def forward(self, x_ND: Tensor, targets_N: Tensor) -> Tensor:
        if self.chunk is None:
            return cross_entropy(x_ND, self.head, targets_N, 15.0, -100)
        return chunked_cross_entropy(x_ND, self.head, targets_N, 15.0, -100, self.chunk)


def bytes_a_logit(chunk: int | None) -> float:
    moved = traffic(Loss(chunk), torch.randn(TOKENS, WIDTH), torch.randint(0, ROWS, (TOKENS,)))
    return sum(sum(kernels.values()) for kernels in moved.values()) / (TOKENS * ROWS)


@pytest.mark.slow
def test_chunks_move_each_logit_no_more_often_than_the_whole_does() -> None:
    """With the one-hot targets scattered it was 24.8 bytes a logit, not 14.8: they are then written and read in float32."""
    chunked, whole = bytes_a_logit(TOKENS // 2), bytes_a_logit(None)
    print(f"{chunked:.1f} bytes a logit in chunks, {whole:.1f} at once")
    assert chunked < 1.1 * whole
