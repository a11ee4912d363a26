"""Batches of tokens on the device, for training and validation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from corpus.dataset import TokenStream, validation_windows
from model.distributed import World
from model.loss import IGNORE_INDEX

# Tokens are kept on the GPU if they take at most this share of its free memory and this many bytes,
# which each process reads at its start. A batch is then one gather without a copy from the host.
RESIDENT_FRACTION, MAX_RESIDENT_BYTES = 0.25, 4e9


class TokenBatches:
    """A dataset's tokens as pairs of inputs and targets, (B, T) int64 on ``device``."""

    def __init__(self, stream: TokenStream, block_size: int, device: torch.device) -> None:
        self.stream = stream
        self.block_size = block_size
        self.device = device
        self.resident: Tensor | None = None
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if 2 * len(stream) < min(RESIDENT_FRACTION * free, MAX_RESIDENT_BYTES):
                # int16 has the bits of uint16, which torch can't index.
                tokens = stream.slice(0, len(stream)).view(np.int16)
                self.resident = torch.from_numpy(tokens).to(device)
        self._span = torch.arange(block_size + 1, device=device)

    def take(self, starts: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return the windows that start at ``starts``: inputs, and targets one token later."""
        if self.resident is not None:
            index = torch.from_numpy(starts).pin_memory().to(self.device, non_blocking=True)
            windows = self.resident[index[:, None] + self._span].long() & 0xFFFF
        else:
            host = self.stream.windows(starts, self.block_size + 1)
            windows = torch.from_numpy(host.astype(np.int64))
            if self.device.type == "cuda":
                windows = windows.pin_memory()
            windows = windows.to(self.device, non_blocking=True)
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def validation_batches(
    batches: TokenBatches, limit: int | None, micro_batch: int, world: World
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield this process's validation batches: inputs, targets, number of targets that count.

    All batches have one shape, so that a compiled network is not compiled again: short ones are
    padded with IGNORE_INDEX. A sharded network is gathered for each, also for one of padding.
    """
    tokens, block = len(batches.stream), batches.block_size
    for starts in validation_windows(tokens, block, limit, micro_batch, world.rank, world.size):
        ids_BT, targets_BT = batches.take(np.pad(starts, (0, micro_batch - len(starts))))
        targets_BT[len(starts) :] = IGNORE_INDEX
        yield ids_BT, targets_BT, len(starts) * block


@torch.no_grad()
def validation_loss(
    network: nn.Module, batches: TokenBatches, limit: int | None, micro_batch: int, world: World
) -> tuple[float, int]:
    """Return the mean loss in nats over the validation windows, and the number of tokens."""
    was_training = network.training
    network.eval()
    parts = validation_batches(batches, limit, micro_batch, world)
    results = [(network(ids_BT, targets_BT), tokens) for ids_BT, targets_BT, tokens in parts]
    network.train(was_training)
    # Read at the end, so that no batch waits for the device. Summed on the CPU, because an Apple
    # GPU has no float64.
    losses = torch.stack([loss for loss, _ in results]).cpu().double()
    tokens = torch.tensor([count for _, count in results], dtype=torch.float64)
    sums = torch.stack([(losses * tokens)[tokens > 0].sum(), tokens.sum()])
    loss_sum, count = world.sum(sums).tolist()
    return loss_sum / count, int(count)
