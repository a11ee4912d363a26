"""Causal attention: its kernels and its masks.

Shape suffixes as in model/gpt.py.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from inference.engine import Positions, Start

# On a CPU, attention over at most this many positions is written as two matrix products: in
# bfloat16 the backward pass of scaled_dot_product_attention takes 5.4 ms for 12 x 64 positions,
# the products take less than 1 ms.
MAX_PRODUCT_POSITIONS = 256

Mask = Tensor | BlockMask | None
KERNELS = ["FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH"]
# TrainConfig.attention → torch's kernels in order of preference.
KERNEL_ORDERS = {
    first.partition("_")[0].lower(): [
        getattr(SDPBackend, name) for name in sorted(KERNELS, key=lambda name: name != first)
    ]
    for first in KERNELS
}


def position_index(start: Start, T: int) -> slice | Tensor:
    """Return the index of the positions in a table: (T, ...), or (B, 1, ...) for Positions."""
    return start.rows_B[:, None] if isinstance(start, Positions) else slice(start, start + T)


def attention_mask(T: int, start: Start, window: int | None, device: torch.device) -> Tensor | None:
    """Return the mask (T, S) of T queries that start at position ``start``.

    A float32 mask is added to the scores; a bool mask is True for the keys that a query sees. None
    means that ``is_causal`` is enough. S counts the positions that at least one query sees.
    """
    if isinstance(start, Positions):
        key_S, query_B1 = torch.arange(start.end, device=device), start.rows_B[:, None]
        first_B1 = query_B1 - (window or start.end)
        return ((key_S <= query_B1) & (key_S > first_B1))[:, None, None]
    if T == 1:
        return None
    visible = window or start + T
    start = min(start, visible - 1)  # counted from the first visible position
    S = start + T
    if device.type == "cpu" and S <= MAX_PRODUCT_POSITIONS:
        hidden_TS = torch.full((T, S), -math.inf)
        mask_TS = hidden_TS.triu(start + 1)
        return mask_TS if visible >= S else mask_TS + hidden_TS.tril(start - visible)
    if start == 0 and visible >= S:
        return None  # is_causal aligns the mask top left, which is right only from position 0
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(start).triu(start - visible + 1)


@lru_cache
def block_mask(T: int, window: int, device: torch.device) -> BlockMask:
    """Return a window over T positions for flex_attention, which skips empty 128 x 128 blocks."""
    size = torch.tensor(window, device=device)  # a Python number would be compiled in

    def is_visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key < size)

    return create_block_mask(is_visible, None, None, T, T, device=device)


def attend(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask: Mask, dropout: float, kernel: str = "auto"
) -> Tensor:
    """Return the causal attention of T queries to S keys: (B, H, T, K)."""
    if isinstance(mask, BlockMask):
        # Autocast does not know flex_attention: it would keep float32 queries and keys.
        q_BHTK, k_BHSK = q_BHTK.to(v_BHSK.dtype), k_BHSK.to(v_BHSK.dtype)
        y_BHTK: Tensor = flex_attention(q_BHTK, k_BHSK, v_BHSK, block_mask=mask)
        return y_BHTK
    if mask is not None and mask.is_floating_point():
        scores_BHTS = (q_BHTK * q_BHTK.size(-1) ** -0.5) @ k_BHSK.mT + mask
        return F.dropout(scores_BHTS.softmax(-1).to(v_BHSK.dtype), dropout) @ v_BHSK
    causal = mask is None and q_BHTK.size(2) > 1
    order = KERNEL_ORDERS.get(kernel)
    # Only around this call: the compiler's cache on disk keys a graph by what is written here.
    with sdpa_kernel(order, set_priority=True) if order else nullcontext():
        return F.scaled_dot_product_attention(
            q_BHTK, k_BHSK, v_BHSK, attn_mask=mask, is_causal=causal, dropout_p=dropout
        )
