"""Batches of tokens on the device: which windows a step reads, and their tensors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corpus.shards import TokenStream
from model.distributed import World
from model.gpt import IGNORED

# Tokens stay on the GPU where they take at most this part of its free memory, and no more than so many bytes, which each
# process of the machine reads at the start: a batch is then one gather with no copy from the host.
RESIDENT_FRACTION, RESIDENT_BYTES = 0.25, 4e9


class TokenBatches:
    """A dataset's tokens as (inputs, targets) pairs of shape (B, T) int64 on ``device``."""

    def __init__(self, stream: TokenStream, block_size: int, device: torch.device) -> None:
        self.stream = stream
        self.block_size = block_size
        self.device = device
        self.resident: Tensor | None = None
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if 2 * len(stream) < min(RESIDENT_FRACTION * free, RESIDENT_BYTES):
                # int16 carries the bits of uint16, which torch can't index.
                tokens = stream.slice(0, len(stream)).view(np.int16)
                self.resident = torch.from_numpy(tokens).to(device)
        self._span = torch.arange(block_size + 1, device=device)

    def take(self, starts: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The windows that begin at ``starts``: inputs and, one token on, targets."""
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
    batches: TokenBatches, limit_tokens: int | None, micro_batch: int, world: World
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """The fixed validation windows of this process: inputs, targets and how many targets count.

    The windows lie side by side from the start of the set. All batches have one shape, which keeps
    a compiled network compiled: the last is filled up with windows whose targets are IGNORED.
    """
    count = (len(batches.stream) - 1) // batches.block_size
    if limit_tokens is not None:
        count = max(1, min(count, limit_tokens // batches.block_size))
    starts = np.arange(count, dtype=np.int64) * batches.block_size
    # As many batches in every process, if need be one without a window: a sharded network is gathered for each.
    for round_start in range(0, count, world.size * micro_batch):
        first = round_start + world.rank * micro_batch
        chosen = starts[first : first + micro_batch]
        filling = micro_batch - len(chosen)
        ids_BT, targets_BT = batches.take(np.concatenate([chosen, np.zeros(filling, dtype=np.int64)]))
        if filling:
            targets_BT[len(chosen) :] = IGNORED
        yield ids_BT, targets_BT, len(chosen) * batches.block_size


@torch.no_grad()
def validation_loss(
    network: torch.nn.Module,
    batches: TokenBatches,
    limit_tokens: int | None,
    micro_batch: int,
    world: World,
) -> tuple[float, int]:
    """Mean loss in nats over the validation windows, and how many tokens that were."""
    was_training = network.training
    network.eval()
    found = [
        (network(ids_BT, targets_BT), tokens)
        for ids_BT, targets_BT, tokens in validation_batches(batches, limit_tokens, micro_batch, world)
    ]
    network.train(was_training)
    # Read at the end, so that no batch waits for the device; summed on the CPU, for an Apple GPU has no float64.
    losses = torch.stack([loss for loss, _ in found]).cpu().double()
    tokens = torch.tensor([count for _, count in found], dtype=torch.float64)
    loss_sum, count = world.sum(torch.stack([(losses * tokens)[tokens > 0].sum(), tokens.sum()])).tolist()
    return loss_sum / count, int(count)
