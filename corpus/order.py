"""Which tokens each optimizer step reads: a pure function of the seed and the step.

    order = BatchOrder(len(stream), block_size, sequences_per_step, seed)
    batch = stream.windows(order.windows(step), block_size + 1)

Ranks and micro-batches take parts of the step's array, so the order is the same for any number of them. The
permutation is a Feistel network: it takes no memory (numpy's shuffle of the 10^8 windows of 10^11 tokens: 400 MB
in each process), and it stays the same when numpy changes its generators' streams, as numpy may.
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
    """An epoch reads every window of ``block_size`` tokens (and the next one, the last target) once.

    Its windows begin at its own seeded offset in [0, block_size), so that windows differ between epochs; what
    is left at both ends is shorter than two windows. DataError where the data is shorter than one.
    """

    def __init__(
        self, num_tokens: int, block_size: int, sequences_per_step: int, seed: int
    ) -> None:
        if num_tokens <= block_size:
            raise DataError(
                f"the data has {num_tokens} tokens, and model.block_size={block_size} needs at least "
                f"{block_size + 1}; take model.block_size={max(2, num_tokens - 1)} or more text"
            )
        self.block_size, self.sequences_per_step, self.seed = block_size, sequences_per_step, seed
        self.windows_per_epoch = max(1, num_tokens // block_size - 1)
        self._offsets = min(block_size, num_tokens - self.windows_per_epoch * block_size)
        self._rows = math.isqrt(self.windows_per_epoch - 1) + 1
        self._columns = -(-self.windows_per_epoch // self._rows)

    def windows(self, step: int) -> Int64:
        """Where the windows of ``step`` begin, (sequences_per_step,) int64."""
        return self.span(step * self.sequences_per_step, self.sequences_per_step)

    def span(self, first: int, count: int) -> Int64:
        """Where ``count`` windows begin, the first of them being number ``first`` of the run: (count,) int64."""
        sequences = first + np.arange(count)
        epochs, places = np.divmod(sequences, self.windows_per_epoch)
        starts = np.empty_like(places)
        for epoch in np.unique(epochs):
            mine, key = (
                epochs == epoch,
                _mix(_mix(np.array([self.seed], np.uint64)) ^ np.uint64(epoch)),
            )
            offset = int(_mix(key + np.uint64(ROUNDS))[0]) % self._offsets
            starts[mine] = offset + self.block_size * self._permuted(places[mine], key)
        return starts

    def _permuted(self, places: Int64, key: UInt64) -> Int64:
        """A bijection of [0, windows_per_epoch): one of rows × columns, again for what lands outside."""
        rows, columns = np.uint64(self._rows), np.uint64(self._columns)
        row, column = np.divmod(places.astype(np.uint64), columns)
        for number in range(0, ROUNDS, 2):
            row = (row + _mix(column ^ _mix(key + np.uint64(number))) % rows) % rows
            column = (column + _mix(row ^ _mix(key + np.uint64(number + 1))) % columns) % columns
        out = (row * columns + column).astype(np.int64)
        if (outside := out >= self.windows_per_epoch).any():
            out[outside] = self._permuted(out[outside], key)
        return out


def micro_batches(windows: Int64, rank: int, size: int, micro_batch: int) -> list[Int64]:
    """The part of a step that process ``rank`` of ``size`` reads, cut into micro-batches.

    The windows of a step depend on the step alone; the processes share them out, so that any number
    of processes reads the same tokens in the same step.
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
