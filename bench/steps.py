"""The same network as nanoGPT's, step for step: the same weights, the same batches, the time of each.

    python -m bench steps --text input.txt --peer nanogpt=../nanoGPT [--steps 100]

The recipe's shape as variant gpt2 with no biases, as nanoGPT trains it; weights are copied from nanoGPT's GPT, each
has the optimizer of its own trainer, and the rates of the recipe. One thing of nanoGPT's is changed: its GELU is the
exact one; GPT-2's, and ours, is the tanh form, which it gets here. Both live in this process and take turns at every
step, so that both see the same machine. Each as its own trainer runs it: ours in the recipe's number format and
compiled (--no-compile: not), nanoGPT's on CUDA in bfloat16 and compiled, on a CPU in float32 and not, as the line of
its README for a machine with no GPU says.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from bench import setup as setups
from bench.results import Results
from bench.setup import Setup
from corpus.order import BatchOrder, micro_batches
from job.exit_status import UserError
from job.schedules import learning_rate
from model import device as devices
from model.batches import TokenBatches
from model.distributed import World
from model.gpt import GPT
from model.optim import make_optimizers

Loss = Callable[[Tensor, Tensor], Tensor]
Batches = list[tuple[Tensor, Tensor]]


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this bench."""
    setups.add_arguments(parser)
    parser.add_argument("--steps", type=int, default=100, help="steps of each (100)")
    parser.add_argument("--compile", action=BooleanOptionalAction, default=True, help="ours")


def main(arguments: Namespace, results: Results) -> int:
    """The entry."""
    more = (
        "variant=gpt2",
        "bias=false",
        "dropout=0.0",
        "optimizer=adamw",
        "embedding_lr_scale=1.0",
    )
    with setups.setup(arguments, results, *more) as setup:
        if "nanogpt" not in setup.peers:
            raise UserError("steps compares with nanoGPT: add --peer nanogpt=CHECKOUT")
        found = run(setup, arguments.steps, arguments.compile)
        results.add(
            "steps",
            recipe=setup.recipe.name,
            device=setup.device,
            compiled=arguments.compile,
            **found,
        )
    return 0


def run(setup: Setup, steps: int, compiled: bool) -> dict[str, Any]:
    """Take turns for ``steps`` steps, or until the budget is spent; what was seen."""
    device, config, recipe = devices.pick_device(setup.device, 0), setup.recipe.train, setup.recipe
    theirs = nanogpt(Path(setup.peers["nanogpt"]).expanduser(), setup)
    ours = GPT(recipe.model, -(-setup.vocab_size // 64) * 64)
    copy_weights(theirs, ours)
    ours.loss_chunk = config.loss_chunk
    on_cpu = device.type == "cpu"
    if compiled and on_cpu:  # as model/step.py does
        for block in ours.h:
            block.compile(dynamic=False)
    runners = {
        "ours": _runner(
            ours.to(device),
            lambda x, y: ours(x, y),
            make_optimizers(ours, config, device, World()),
            setup,
            config.dtype,
            compiled and not on_cpu,
        ),
        "nanogpt": _runner(
            theirs.to(device),
            lambda x, y: theirs(x, y)[1],
            [
                theirs.configure_optimizers(
                    config.weight_decay, config.lr, (config.beta1, config.beta2), setup.device
                )
            ],
            setup,
            "float32" if on_cpu else "bfloat16",
            not on_cpu,
        ),
    }
    stream = setup.stream("train")
    order = BatchOrder(len(stream), recipe.model.block_size, recipe.sequences_per_step, config.seed)
    batches = TokenBatches(stream, recipe.model.block_size, device)
    micro_batch = setup.micro_batch(None)
    losses: dict[str, list[float]] = {name: [] for name in runners}
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for step in range(steps):
        if setup.results.left() < 5:
            break
        parts = [
            batches.take(starts) for starts in micro_batches(order.windows(step), 0, 1, micro_batch)
        ]
        for name in sorted(runners, reverse=step % 2 == 1):  # each is first in every other step
            started = time.perf_counter()
            losses[name].append(runners[name](parts, learning_rate(step, config)))
            seconds[name].append(time.perf_counter() - started)
    settled = {name: median(of[max(3, len(of) // 5) :] or of) for name, of in seconds.items()}
    return {
        "steps": len(losses["ours"]),
        "ms_median_ours": round(settled["ours"] * 1e3, 3),
        "ms_median_nanogpt": round(settled["nanogpt"] * 1e3, 3),
        "ours_is_faster": round(settled["nanogpt"] / settled["ours"], 4),
        "largest_difference_of_losses": max(
            abs(a - b) for a, b in zip(*losses.values(), strict=True)
        ),
        "first_losses": [of[0] for of in losses.values()],
        "last_losses": [of[-1] for of in losses.values()],
    }


def _runner(
    network: nn.Module,
    loss_of: Loss,
    optimizers: list[torch.optim.Optimizer],
    setup: Setup,
    dtype: str,
    compiled: bool,
) -> Callable[[Batches, float], float]:
    """A function that takes one optimizer step over micro-batches and gives its loss."""
    forward: Loss = torch.compile(loss_of, dynamic=False) if compiled else loss_of
    device, config = torch.device(setup.device), setup.recipe.train

    def step(parts: Batches, rate: float) -> float:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        total = torch.zeros((), device=device)
        for inputs, targets in parts:
            with devices.autocast(dtype, device):
                loss = forward(inputs, targets) / len(parts)
            torch.autograd.backward(loss)
            total += loss.detach()
        nn.utils.clip_grad_norm_(network.parameters(), config.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        network.zero_grad(set_to_none=True)
        return float(total.item())

    return step


def nanogpt(checkout: Path, setup: Setup) -> Any:
    """nanoGPT's GPT of the recipe's shape, from the checkout's model.py."""
    path = checkout / "model.py"
    if not path.exists():
        raise UserError(f"{checkout} is no checkout of nanoGPT: it has no model.py")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # the compiler asks for it by name
    spec.loader.exec_module(module)
    shape = setup.recipe.model
    torch.manual_seed(setup.recipe.train.seed)
    network = module.GPT(
        module.GPTConfig(
            block_size=shape.block_size,
            vocab_size=-(-setup.vocab_size // 64) * 64,
            n_layer=shape.n_layer,
            n_head=shape.n_head,
            n_embd=shape.n_embd,
            dropout=shape.dropout,
            bias=shape.bias,
        )
    )
    for block in network.transformer.h:
        block.mlp.gelu = nn.GELU(approximate="tanh")
    return network


def copy_weights(theirs: nn.Module, ours: GPT) -> None:
    """nanoGPT's weights into ours: the names differ by a prefix, and the head is the embedding in both."""
    weights = {
        name.removeprefix("transformer."): tensor for name, tensor in theirs.state_dict().items()
    }
    weights.pop("lm_head.weight")
    ours.load_state_dict(weights)
