"""What generation remembers of the tokens already read. Shapes as in model/gpt.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LayerCache:
    """Keys and values of the positions already read, for one block that sees ``window`` tokens or all: (B, H, S, K)."""

    window: int | None
    k_BHSK: Tensor
    v_BHSK: Tensor

    def extend(self, k_BHTK: Tensor, v_BHTK: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Write the new positions at ``start`` and return those filled that one of them sees."""
        first = 0 if self.window is None else max(0, start - self.window + 1)
        end = start + k_BHTK.size(2)
        self.k_BHSK[:, :, start:end] = k_BHTK
        self.v_BHSK[:, :, start:end] = v_BHTK
        return self.k_BHSK[:, :, first:end], self.v_BHSK[:, :, first:end]


@dataclass
class Cache:
    """One LayerCache for each block, and the last token's embedding, which the next one's is smeared with."""

    layers: list[LayerCache]
    last_B1D: Tensor

    @classmethod
    def empty(cls, windows: list[int | None], shape_BHSK: tuple[int, int, int, int], like: Tensor) -> Cache:
        """Room for S positions in each block, in the dtype and on the device of the embedding ``like`` (V, D)."""
        made = [LayerCache(w, like.new_zeros(shape_BHSK), like.new_zeros(shape_BHSK)) for w in windows]
        return cls(made, like.new_zeros(shape_BHSK[0], 1, like.size(1)))

    def before(self, x_BTD: Tensor, start: int) -> Tensor:
        """The embedding before the first of ``x_BTD``, zeros at position 0: (B, 1, D). The last is remembered."""
        before_B1D, self.last_B1D = self.last_B1D.to(x_BTD.dtype), x_BTD[:, -1:]
        return before_B1D if start > 0 else torch.zeros_like(before_B1D)
