"""Keys and values of the tokens that a network has read. Shape suffixes as in model/gpt.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inference.engine import Positions, Start


@dataclass
class LayerCache:
    """Keys and values (B, H, S, K) of one block, which sees ``window`` tokens or all of them."""

    window: int | None
    k_BHSK: Tensor
    v_BHSK: Tensor

    def extend(self, k_BHTK: Tensor, v_BHTK: Tensor, start: Start) -> tuple[Tensor, Tensor]:
        """Store the new positions at ``start``; return all that at least one of them sees."""
        k_BHSK, v_BHSK = self.k_BHSK[: len(k_BHTK)], self.v_BHSK[: len(v_BHTK)]
        if isinstance(start, Positions):
            first, end = 0, start.end
            at = torch.arange(len(k_BHTK), device=k_BHTK.device), slice(None), start.rows_B
            k_BHSK[at], v_BHSK[at] = k_BHTK[:, :, 0], v_BHTK[:, :, 0]
        else:
            first = 0 if self.window is None else max(0, start - self.window + 1)
            end = start + k_BHTK.size(2)
            k_BHSK[:, :, start:end], v_BHSK[:, :, start:end] = k_BHTK, v_BHTK
        return k_BHSK[:, :, first:end], v_BHSK[:, :, first:end]


@dataclass
class KVCache:
    """A LayerCache for each block, and the embedding of the last token for the smear."""

    layers: list[LayerCache]
    last_B1D: Tensor

    def previous(self, x_BTD: Tensor, start: Start) -> Tensor:
        """Return the embedding before ``x_BTD`` (B, 1, D), zeros at position 0; store the last."""
        last_B1D = self.last_B1D[: len(x_BTD)]
        previous_B1D = last_B1D.to(x_BTD.dtype, copy=True)
        last_B1D.copy_(x_BTD[:, -1:])
        if isinstance(start, Positions):
            return previous_B1D * (start.rows_B > 0)[:, None, None]
        return previous_B1D if start > 0 else torch.zeros_like(previous_B1D)

    def row(self, row: int) -> KVCache:
        """Return one row as a cache of its own, with shared memory."""
        rows = slice(row, row + 1)
        layers = [LayerCache(x.window, x.k_BHSK[rows], x.v_BHSK[rows]) for x in self.layers]
        return KVCache(layers, self.last_B1D[rows])

    def copy_row(self, source: int, target: int) -> None:
        """Copy one row to another."""
        tensors = [t for layer in self.layers for t in (layer.k_BHSK, layer.v_BHSK)]
        for tensor in (*tensors, self.last_B1D):
            tensor[target] = tensor[source]
