"""`bench traffic`: bytes and instructions of a compiled step, counted without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench.traffic import instructions_per_warp, parse_sass, traffic
from job.recipe import ModelConfig
from model.gpt import GPT
from model.loss import chunked_cross_entropy

TOKENS, WIDTH, ROWS = 256, 32, 4096
# Six instructions, three of them in a loop; then a branch to itself and padding.
SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;                /* 0x00000a00ff017b82 */
                                                                         /* 0x000fe20000000800 */
        /*0010*/                   LDG.E R2, desc[UR4][R2.64] ;          /* 0x0000000402027981 */
        /*0020*/                   FADD R4, R2, R4 ;                     /* 0x0000000402047221 */
        /*0030*/              @!P0 BRA 0x10 ;                            /* 0xffffffff00f08947 */
        /*0040*/                   STG.E desc[UR4][R6.64], R4 ;          /* 0x0000000406007986 */
        /*0050*/                   EXIT ;                                /* 0x000000000000794d */
        /*0060*/                   BRA 0x60;                             /* 0xfffffffc00fc7947 */
        /*0070*/                   NOP;                                  /* 0x0000000000007918 */
"""


class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Parameter(torch.randn(ROWS, WIDTH))

    def forward(self, x_ND: Tensor, targets_N: Tensor) -> Tensor:
        return chunked_cross_entropy(x_ND, self.head, targets_N, 15.0, TOKENS // 2)


@pytest.mark.slow
def test_the_loss_moves_each_logit_at_most_as_often_as_needed() -> None:
    """Allow for each logit only the passes that the loss needs.

    The product writes it, three passes read it (maximum, sum, gradient), and the gradient is
    written once and read by two products: 14 bytes in bfloat16, plus 3.4 for everything else, the
    weights above all.
    Scattering one-hot targets would add 10 bytes, for a gradient in float32.
    """
    x_ND = torch.randn(TOKENS, WIDTH, requires_grad=True)  # without, no gradient is computed
    moved = traffic(Loss(), x_ND, torch.randint(0, ROWS, (TOKENS,)))
    bytes_per_logit = sum(sum(kernels.values()) for kernels in moved.values()) / (TOKENS * ROWS)
    print(f"{bytes_per_logit:.1f} bytes per logit")
    assert bytes_per_logit < 18


@pytest.mark.slow
def test_the_modern_network_moves_at_most_470_bytes_per_channel() -> None:
    """Count one block, in bfloat16 from the embedding on.

    A smear in float32 would move 25 more, a float32 output of the last norm 4 more.
    """
    config = ModelConfig(variant="modern", n_layer=1, n_head=2, n_embd=128, block_size=256)
    network, ids = GPT(config, 64), torch.randint(0, 64, (16, 256))
    network.loss_chunk = 1024
    moved = traffic(network, ids, ids)
    per_channel = sum(sum(kernels.values()) for kernels in moved.values()) / (ids.numel() * 128)
    print(f"{per_channel:.1f} bytes per channel")
    assert per_channel < 470


def test_a_loop_counts_once_per_trip() -> None:
    count, loops = parse_sass(SASS)
    assert (count, loops) == (6, [(1, 3)])
    assert instructions_per_warp(count, loops, {}) == 6
    assert instructions_per_warp(count, loops, {"r0_numel": 100, "R0_BLOCK": 32}) == 6 + 3 * 3
    assert instructions_per_warp(count, loops, {"V": 64, "BLOCK": 32}) == 6 + 3
