"""A training loop for a baseline's network and optimizer, with the batches that ours gets.

It is as fast as the baseline's own: batches come from memory through pinned pages, and the GPU is
synchronized once a step.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from corpus.dataset import TokenStream
from corpus.order import BatchOrder


@dataclass(frozen=True)
class Orders:
    """What to train, passed as JSON in one argument. ``lr`` None: the baseline's own rate."""

    data: str
    device: str
    steps: int
    sequences: int  # per step
    micro_batch: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    vocab_size: int  # padded
    seed: int
    lr: float | None
    val_tokens: int | None
    checkout: str

    @classmethod
    def from_argv(cls) -> Orders:
        """Parse the command line's only argument."""
        return cls(**json.loads(sys.argv[1]))


Loss = Callable[[Tensor, Tensor], Tensor]


def train(
    orders: Orders,
    network: nn.Module,
    loss_of: Loss,
    step_optimizer: Callable[[int], None],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    **extra: Any,
) -> None:
    """Train, and print a JSON line for each step and a final one.

    ``loss_of`` is the (compiled) forward pass; ``step_optimizer(step)`` sets the rates and steps.
    """
    block, device = orders.block_size, torch.device(orders.device)
    stream = TokenStream(Path(orders.data), "train")
    order = BatchOrder(len(stream), block, orders.sequences, orders.seed)
    take = _batches(stream, block, device)
    network.train()
    clock = time.perf_counter()
    for step in range(orders.steps):
        windows = order.windows(step)
        parts = [
            windows[i : i + orders.micro_batch] for i in range(0, len(windows), orders.micro_batch)
        ]
        total = torch.zeros((), device=device)
        for starts in parts:
            inputs, targets = take(starts)
            with autocast():
                loss = loss_of(inputs, targets) / len(parts)
            torch.autograd.backward(loss)
            total += loss.detach()
        step_optimizer(step)
        network.zero_grad(set_to_none=True)
        value = total.item()  # synchronizes with the GPU
        now = time.perf_counter()
        line = {"step": step + 1, "seconds": now - clock, "loss": value}
        print(json.dumps(line), flush=True)
        clock = now
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    val_loss = None
    if orders.val_tokens is not None:
        val = TokenStream(Path(orders.data), "val")
        val_loss = evaluate(orders, network, loss_of, autocast, val, _batches(val, block, device))
    last_line = {"peak_memory_bytes": peak, "val_loss": val_loss, **extra}
    print(json.dumps(last_line), flush=True)


@torch.no_grad()
def evaluate(
    orders: Orders,
    network: nn.Module,
    loss_of: Loss,
    autocast: Callable[[], AbstractContextManager[Any]],
    val: TokenStream,
    take: Callable[[NDArray[np.int64]], tuple[Tensor, Tensor]],
) -> float:
    """Return the mean loss over the first windows of the validation set."""
    network.eval()
    count = (len(val) - 1) // orders.block_size
    if orders.val_tokens is not None and orders.val_tokens >= 0:
        count = min(count, orders.val_tokens // orders.block_size)
    starts = np.arange(count, dtype=np.int64) * orders.block_size
    total = 0.0
    for first in range(0, count, orders.micro_batch):
        part = starts[first : first + orders.micro_batch]
        with autocast():
            total += float(loss_of(*take(part))) * len(part)
    return total / count


def _batches(
    stream: TokenStream, block: int, device: torch.device
) -> Callable[[NDArray[np.int64]], tuple[Tensor, Tensor]]:
    def take(starts: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        windows = torch.from_numpy(stream.windows(starts, block + 1).astype(np.int64))
        if device.type == "cuda":
            windows = windows.pin_memory().to(device, non_blocking=True)
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    return take


def cosine(step: int, steps: int, peak: float) -> float:
    """Return the rate: linear warm-up for a tenth of the steps (at most 100), then a cosine."""
    warmup = min(100, steps // 10)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.1 + 0.45 * (1 + float(np.cos(np.pi * progress))))
