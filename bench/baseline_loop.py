"""Train a baseline's network and optimizer on the batches that ours gets.

    python -m bench.baseline_loop hf|nanochat JSON

bench/trainers.py starts it. The GPU is synchronized once a step, as in the baselines' own loops.

hf: transformers' GPT-2 as in a typical hand-written loop: AdamW, autocast, torch.compile.
nanochat: its network and optimizer with the settings of its scripts/base_train.py; ``lr`` scales
all of its learning rates. Without FlashAttention 3 all layers attend fully, as it recommends.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.results import Results
from bench.setup import Setup, Task
from corpus.dataset import BatchOrder, micro_batches
from job.machine import peak_memory_bytes
from job.paths import VolumePaths
from model.batches import TokenBatches

HEAD_SIZE = 128  # nanochat's
REFERENCE_TOKENS = 2**19  # tokens in a step of the size that nanochat's rates were tuned for
TOKENS_PER_PARAMETER = 12  # nanochat's default training length
Autocast = Callable[[], AbstractContextManager[Any]]
Batches = list[tuple[Tensor, Tensor]]  # inputs and targets of each micro-batch
Loss = Callable[[Tensor, Tensor], Tensor]  # of inputs and targets


def encode(setup: Setup, task: Task) -> str:
    """Return the second argument of the command; the volumes are in its environment."""
    return json.dumps([setup.recipe_args, setup.device, setup.baselines, asdict(task)])


def decode(text: str) -> tuple[Setup, Task]:
    """Return the arguments of ``encode``, in the process that it started."""
    args, device, baselines, task = json.loads(text)
    volumes = VolumePaths.current()
    return Setup(tuple(args), device, Path(), volumes, baselines, Results()), Task(**task)


def train(
    setup: Setup,
    task: Task,
    network: nn.Module,
    loss_of: Loss,
    step_optimizer: Callable[[int], None],
    autocast: Autocast = nullcontext,
    **extra: Any,
) -> None:
    """Train, and print a JSON line for each step and a final one.

    ``loss_of`` is the (compiled) forward pass; ``step_optimizer(step)`` sets the rates and steps.
    """
    recipe, device = setup.recipe, torch.device(setup.device)
    block, size = recipe.model.block_size, setup.micro_batch(task.micro_batch)
    stream = setup.stream("train")
    order = BatchOrder(len(stream), block, recipe.sequences_per_step, recipe.train.seed)
    batches = TokenBatches(stream, block, device)
    network.train()
    clock = time.perf_counter()
    for step in range(task.steps):
        parts = [batches.take(starts) for starts in micro_batches(order.windows(step), 0, 1, size)]
        total = compute_gradients(loss_of, parts, autocast)
        step_optimizer(step)
        network.zero_grad(set_to_none=True)
        value = total.item()  # synchronizes with the GPU
        now = time.perf_counter()
        print(json.dumps({"step": step + 1, "seconds": now - clock, "loss": value}), flush=True)
        clock = now
    on_cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_cuda else peak_memory_bytes()
    val_loss = None
    if task.val_tokens is not None:
        network.eval()
        val = TokenBatches(setup.stream("val"), block, device)
        val_loss = evaluate(val, task.val_tokens, size, loss_of, autocast)
    print(json.dumps({"peak_memory_bytes": peak, "val_loss": val_loss, **extra}), flush=True)


def compute_gradients(loss_of: Loss, parts: Batches, autocast: Autocast) -> Tensor:
    """Accumulate the gradients of the micro-batches; return their mean loss."""
    losses = []
    for inputs, targets in parts:
        with autocast():
            loss = loss_of(inputs, targets) / len(parts)
        torch.autograd.backward(loss)
        losses.append(loss.detach())
    return torch.stack(losses).sum()


@torch.no_grad()
def evaluate(
    val: TokenBatches,
    val_tokens: int,
    micro_batch: int,
    loss_of: Loss,
    autocast: Autocast,
) -> float:
    """Return the mean loss over the first windows of the validation set."""
    count = (len(val.stream) - 1) // val.block_size
    if val_tokens >= 0:
        count = min(count, val_tokens // val.block_size)
    starts = np.arange(count, dtype=np.int64) * val.block_size
    total = 0.0
    for first in range(0, count, micro_batch):
        part = starts[first : first + micro_batch]
        with autocast():
            total += float(loss_of(*val.take(part))) * len(part)
    return total / count


def hugging_face_network(setup: Setup) -> nn.Module:
    """Build transformers' GPT2LMHeadModel in the recipe's shape."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = setup.recipe.model
    config = GPT2Config(
        vocab_size=setup.tokenizer.padded_vocab_size,
        n_positions=shape.block_size,
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        resid_pdrop=shape.dropout,
        embd_pdrop=shape.dropout,
        attn_pdrop=shape.dropout,
        use_cache=False,
    )
    network: nn.Module = GPT2LMHeadModel(config)
    return network.to(setup.device)


def hugging_face_loss(network: nn.Module) -> Loss:
    """Return the mean loss of inputs and targets; transformers' own ``labels`` are shifted."""

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        logits = network(inputs).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return loss_of


def decayed_matrices(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: ``weight_decay`` for matrices, 0 for vectors."""
    return [
        {"params": [p for p in network.parameters() if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in network.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]


def train_hugging_face(setup: Setup, task: Task) -> None:
    """Train transformers' GPT2LMHeadModel, compiled on CUDA."""
    cuda, network = setup.device == "cuda", hugging_face_network(setup)
    groups = decayed_matrices(network, 0.1)
    peak = task.lr or 6e-4
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=True)

    def step_optimizer(step: int) -> None:
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, task.steps, peak)
        optimizer.step()

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext()

    loss_of = hugging_face_loss(network)
    forward = torch.compile(loss_of, dynamic=False) if cuda else loss_of
    train(setup, task, network, forward, step_optimizer, autocast)


def cosine(step: int, steps: int, peak: float) -> float:
    """Return the rate: linear warm-up for a tenth of the steps (at most 100), then a cosine."""
    warmup = min(100, steps // 10)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def nanochat_network(setup: Setup, heads: int) -> tuple[Any, bool]:
    """Build nanochat's GPT in the recipe's shape; return it, and True with FlashAttention 3."""
    sys.path.insert(0, str(Path(setup.baselines["nanochat"]).expanduser().resolve()))
    from nanochat.flash_attention import USE_FA3  # type: ignore[import-not-found]
    from nanochat.gpt import GPT, GPTConfig  # type: ignore[import-not-found]

    shape = setup.recipe.model
    config = GPTConfig(
        sequence_len=shape.block_size,
        vocab_size=setup.tokenizer.padded_vocab_size,
        n_layer=shape.n_layer,
        n_head=heads,
        n_kv_head=heads,
        n_embd=shape.n_embd,
        window_pattern="SSSL" if USE_FA3 else "L",
    )
    with torch.device("meta"):
        network = GPT(config)
    network.to_empty(device=setup.device)
    network.init_weights()
    return network, bool(USE_FA3)


def train_nanochat(setup: Setup, task: Task) -> None:
    """Train nanochat's GPT, compiled."""
    shape = setup.recipe.model
    heads = shape.n_embd // HEAD_SIZE if shape.n_embd % HEAD_SIZE == 0 else shape.n_head
    network, has_fa3 = nanochat_network(setup, heads)
    compiled = torch.compile(network, dynamic=False)
    step_tokens = setup.recipe.sequences_per_step * shape.block_size
    batch_ratio = step_tokens / REFERENCE_TOKENS
    scale = math.sqrt(batch_ratio) * (task.lr or 1.0)
    # nanochat scales its weight decay down for runs longer than its default length.
    counts = network.num_scaling_params()
    planned = TOKENS_PER_PARAMETER * (counts["transformer_matrices"] + counts["lm_head"])
    tokens = max(task.steps * step_tokens, 1)
    weight_decay = 0.28 * math.sqrt(batch_ratio) * min(1.0, planned / tokens)
    optimizer = network.setup_optimizer(
        unembedding_lr=0.008 * scale,
        embedding_lr=0.3 * scale,
        scalar_lr=0.5 * scale,
        matrix_lr=0.02 * scale,
        weight_decay=weight_decay,
    )

    def step_optimizer(step: int) -> None:
        rate, momentum = nanochat_schedule(step, task.steps)
        decay = weight_decay * 0.5 * (1 + math.cos(math.pi * step / task.steps))
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
            if group["kind"] == "muon":
                group |= {"momentum": momentum, "weight_decay": decay}
        optimizer.step()

    train(setup, task, network, compiled, step_optimizer, flash_attention_3=has_fa3)


def nanochat_schedule(step: int, steps: int) -> tuple[float, float]:
    """Return the factor on the learning rates, and Muon's momentum.

    The rates rise for 40 steps, stay, and fall to a twentieth over the last 65% of the steps.
    """
    left = (steps - step) / max(1, round(0.65 * steps))
    rate = min((step + 1) / 40, 1.0)
    if step >= 40 and left < 1:
        rate = left + (1 - left) * 0.05
    momentum = 0.85 + 0.12 * min(step / 400, 1.0)
    if step >= 400 and left < 1:
        momentum = 0.97 * left + 0.90 * (1 - left)
    return rate, momentum


if __name__ == "__main__":
    own_setup, own_task = decode(sys.argv[2])
    torch.manual_seed(own_setup.recipe.train.seed)
    torch.set_float32_matmul_precision("high")
    trainers = {"hf": train_hugging_face, "nanochat": train_nanochat}
    trainers[sys.argv[1]](own_setup, own_task)
