"""Count the peak memory of a training step with torch, tensor by tensor, without an allocator.

Only shapes are computed (FakeTensorMode), so any machine can count GPT-2 with a GPU's batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.weak import WeakIdKeyDictionary

from job.memory import micro_batch_size, network_size
from job.recipe import Recipe
from model.distributed import World
from model.gpt import GPT
from model.optim import make_optimizers

DEVICE = torch.device("cpu")


class _Unlisted(WeakIdKeyDictionary):
    """MemTracker's modules, hidden from its loop.

    Otherwise it updates the peak of every module at each operation: two thirds of the time with
    24 layers.
    """

    def values(self) -> Iterator[Any]:
        """Yield nothing."""
        return iter(())


def peak_bytes(recipe: Recipe, micro_batch: int, bf16: bool) -> int:
    """Return the bytes of all live tensors at the peak of the second optimizer step."""
    rows = network_size(recipe.model, recipe.data.tokenizer).rows
    passes = recipe.sequences_per_step // micro_batch_size(recipe.sequences_per_step, micro_batch)
    # As on a GPU: a CPU computes short attention as two products, which keep the scores, and a
    # float32 residual.
    fused, low = (
        patch("model.attention.MAX_PRODUCT_POSITIONS", 0),
        patch("model.gpt.MEMORY_BOUND", ("cpu",)),
    )
    with fused, low, patch.object(GPT, "init_weights", lambda network: None), FakeTensorMode():
        network = GPT(recipe.model, rows)
        network.loss_chunk = recipe.train.loss_chunk
        network.activation_checkpointing = recipe.train.activation_checkpointing
        for block in network.h:  # unlike on a CPU, fused attention on a GPU keeps no dropout mask
            block.attn.dropout = 0.0
        optimizers = make_optimizers(network, recipe.train, World(device=DEVICE))
        tracker = MemTracker()
        tracker.memory_tracking = _Unlisted()
        tracker.track_external(network)
        with tracker:
            for _ in range(2):
                # Two passes are enough: all but the first find gradients.
                for _ in range(min(passes, 2)):
                    tracker.reset_mod_stats()
                    _backward(network, micro_batch, recipe.model.block_size, bf16)
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                for optimizer in optimizers:
                    optimizer.step()
                network.zero_grad(set_to_none=True)
            return int(tracker.get_tracker_snapshot("peak")[DEVICE]["Total"])


def _backward(network: GPT, sequences: int, block_size: int, bf16: bool) -> None:
    ids_BT = torch.zeros(sequences, block_size, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        loss = network(ids_BT, ids_BT)
    loss.backward()
