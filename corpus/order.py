"""The order of the training windows: a pure function of the seed and the step.

    order = BatchOrder(len(stream), block_size, sequences_per_step, seed)
    batch = stream.windows(order.windows(step), block_size + 1)

Ranks and micro-batches take parts of the step's array, so the order is the same for any number of
them. The permutation is a Feistel network: it takes no memory (numpy's shuffle of the 10^8 windows
of 10^11 tokens takes 400 MB in each process), and it does not depend on numpy's random generators,
whose streams may change between versions.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from corpus import DataError

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
ROUNDS = 8


class BatchOrder:
    """Read every window of ``block_size`` tokens, and the last target after it, once in an epoch.

    Each epoch has a seeded offset in [0, block_size), so its windows differ from those of other
    epochs; the tokens left out at both ends are fewer than two windows. Raises DataError if the
    data is shorter than one window.
    """

    def __init__(
        self, num_tokens: int, block_size: int, sequences_per_step: int, seed: int
    ) -> None:
        if num_tokens <= block_size:
            raise DataError(
                f"the data has {num_tokens} tokens, and model.block_size={block_size} needs at "
                f"least {block_size + 1}; use "
                f"model.block_size={max(2, num_tokens - 1)} or more text"
            )
        self.block_size, self.sequences_per_step, self.seed = block_size, sequences_per_step, seed
        self.windows_per_epoch = max(1, num_tokens // block_size - 1)
        self._offsets = min(block_size, num_tokens - self.windows_per_epoch * block_size)
        self._rows = math.isqrt(self.windows_per_epoch - 1) + 1
        self._columns = -(-self.windows_per_epoch // self._rows)

    def windows(self, step: int) -> Int64:
        """Return the starts of the windows of ``step``, (sequences_per_step,) int64."""
        return self.span(step * self.sequences_per_step, self.sequences_per_step)

    def span(self, first: int, count: int) -> Int64:
        """Return the starts of ``count`` windows from number ``first`` of the run, int64."""
        sequences = first + np.arange(count)
        epochs, positions = np.divmod(sequences, self.windows_per_epoch)
        starts = np.empty_like(positions)
        for epoch in np.unique(epochs):
            mine, key = (
                epochs == epoch,
                _mix(_mix(np.array([self.seed], np.uint64)) ^ np.uint64(epoch)),
            )
            offset = int(_mix(key + np.uint64(ROUNDS))[0]) % self._offsets
            starts[mine] = offset + self.block_size * self._permuted(positions[mine], key)
        return starts

    def _permuted(self, positions: Int64, key: UInt64) -> Int64:
        """Permute [0, windows_per_epoch): permute rows × columns until the result is in range."""
        rows, columns = np.uint64(self._rows), np.uint64(self._columns)
        row, column = np.divmod(positions.astype(np.uint64), columns)
        for number in range(0, ROUNDS, 2):
            row = (row + _mix(column ^ _mix(key + np.uint64(number))) % rows) % rows
            column = (column + _mix(row ^ _mix(key + np.uint64(number + 1))) % columns) % columns
        out = (row * columns + column).astype(np.int64)
        if (outside := out >= self.windows_per_epoch).any():
            out[outside] = self._permuted(out[outside], key)
        return out


def micro_batches(windows: Int64, rank: int, size: int, micro_batch: int) -> list[Int64]:
    """Return the micro-batches of process ``rank`` of ``size``.

    The windows of a step depend only on the step, so any number of processes reads the same
    tokens in the same step.
    """
    share = len(windows) // size
    mine = windows[rank * share : (rank + 1) * share]
    return [mine[i : i + micro_batch] for i in range(0, share, micro_batch)]


def _mix(values: UInt64) -> UInt64:
    """SplitMix64 (Steele, Lea and Flood 2014)."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
