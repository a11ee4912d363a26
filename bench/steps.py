"""Train the same network as nanoGPT, step by step, from the same weights and batches.

    python -m bench steps --text input.txt --baseline nanogpt=../nanoGPT [--steps 100]

The recipe's shape as variant gpt2 without biases. The weights are copied from nanoGPT's GPT, each
network has its own trainer's optimizer, and the rates are the recipe's. One thing in nanoGPT is
changed: its exact GELU becomes the tanh form, which GPT-2 and ours use. Both networks take turns
at every step in this process, so that both see the same machine.

Each runs as its own trainer runs it: ours in the recipe's number format, compiled unless
--no-compile; nanoGPT on CUDA in bfloat16 and compiled, on the CPU in float32 and not compiled, as
in its README.
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

from bench.results import Results, settled
from bench.setup import Setup, add_setup_arguments, prepare_setup
from corpus.dataset import BatchOrder, micro_batches
from job.exit_status import UserError
from job.recipe import Recipe
from job.schedules import learning_rate
from model import device as devices
from model.batches import TokenBatches
from model.distributed import World
from model.gpt import GPT
from model.loss import pick_loss
from model.optim import make_optimizers

SAME_AS_NANOGPT = (
    *("variant=gpt2", "bias=false", "dropout=0.0", "optimizer=adamw", "embedding_lr_scale=1.0"),
)
Loss = Callable[[Tensor, Tensor], Tensor]
Batches = list[tuple[Tensor, Tensor]]
StepFunction = Callable[[Batches, float], float]  # takes the micro-batches and the learning rate


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this bench."""
    add_setup_arguments(parser)
    parser.add_argument("--steps", type=int, default=100, help="steps of each network (100)")
    parser.add_argument(
        "--compile", action=BooleanOptionalAction, default=True, help="compile our network"
    )


def main(arguments: Namespace, results: Results) -> int:
    """Measure, and return 0."""
    with prepare_setup(arguments, results, *SAME_AS_NANOGPT) as setup:
        if "nanogpt" not in setup.baselines:
            raise UserError("no nanoGPT to compare with; add --baseline nanogpt=CHECKOUT")
        figures = run(setup, arguments.steps, arguments.compile)
        what = {"recipe": setup.recipe.name, "device": setup.device, "compiled": arguments.compile}
        results.add("steps", **what, **figures)
    return 0


def run(setup: Setup, steps: int, compiled: bool) -> dict[str, Any]:
    """Train both for ``steps`` steps, or until time runs out, and return the figures."""
    device, recipe = torch.device(setup.device), setup.recipe
    theirs = nanogpt(setup)
    ours = our_network(recipe, setup.padded_vocab_size, device)
    copy_weights(theirs, ours)
    step_functions = {
        "ours": our_step(setup, ours, compiled),
        "nanogpt": nanogpt_step(setup, theirs),
    }
    stream, context = setup.stream("train"), recipe.model.block_size
    order = BatchOrder(len(stream), context, recipe.sequences_per_step, recipe.train.seed)
    batches, size = TokenBatches(stream, context, device), setup.micro_batch(None)
    losses: dict[str, list[float]] = {name: [] for name in step_functions}
    seconds: dict[str, list[float]] = {name: [] for name in step_functions}
    for step in range(steps):
        if setup.results.seconds_left() < 5:
            break
        parts = [batches.take(starts) for starts in micro_batches(order.windows(step), 0, 1, size)]
        for name in sorted(step_functions, reverse=step % 2 == 1):  # take turns at going first
            started = time.perf_counter()
            rate = learning_rate(step, recipe.train)
            losses[name].append(step_functions[name](parts, rate))
            seconds[name].append(time.perf_counter() - started)
    medians = {name: median(settled(of)) for name, of in seconds.items()}
    return {
        "steps": len(losses["ours"]),
        **{f"ms_median_{name}": round(of * 1e3, 3) for name, of in medians.items()},
        "ours_speedup": round(medians["nanogpt"] / medians["ours"], 4),
        "largest_difference_of_losses": max(
            abs(a - b) for a, b in zip(*losses.values(), strict=True)
        ),
        "first_losses": [of[0] for of in losses.values()],
        "last_losses": [of[-1] for of in losses.values()],
    }


def our_network(recipe: Recipe, rows: int, device: torch.device) -> GPT:
    """Build the recipe's network with ``rows`` tokens, and the loss that the trainer picks."""
    network = GPT(recipe.model, rows)
    network.loss_chunk = recipe.train.loss_chunk
    network.chunk_loss = pick_loss(device, network.softcap)
    return network.to(device)


def our_step(setup: Setup, network: GPT, compiled: bool) -> StepFunction:
    """Return a function that trains ``network`` as model/step.py does."""
    config, device = setup.recipe.train, torch.device(setup.device)
    optimizers = make_optimizers(network, config, device, World())
    on_cpu = device.type == "cpu"
    if compiled and on_cpu:
        for block in network.h:
            block.compile(dynamic=False)
    compiled = compiled and not on_cpu
    return step_function(
        setup, network, lambda x, y: network(x, y), optimizers, config.dtype, compiled
    )


def nanogpt_step(setup: Setup, network: Any) -> StepFunction:
    """Return a function that trains ``network`` as nanoGPT does."""
    config, on_cpu = setup.recipe.train, setup.device == "cpu"
    betas = (config.beta1, config.beta2)
    network.to(setup.device)
    optimizer = network.configure_optimizers(config.weight_decay, config.lr, betas, setup.device)
    dtype = "float32" if on_cpu else "bfloat16"
    return step_function(
        setup, network, lambda x, y: network(x, y)[1], [optimizer], dtype, not on_cpu
    )


def step_function(
    setup: Setup,
    network: nn.Module,
    loss_of: Loss,
    optimizers: list[torch.optim.Optimizer],
    dtype: str,
    compiled: bool,
) -> StepFunction:
    """Return a function that takes one optimizer step and returns its loss."""
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


def nanogpt(setup: Setup) -> Any:
    """Build nanoGPT's GPT in the recipe's shape, from the checkout's model.py."""
    checkout = Path(setup.baselines["nanogpt"]).expanduser()
    path = checkout / "model.py"
    if not path.exists():
        raise UserError(f"{checkout} is not a nanoGPT checkout: model.py is missing")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # torch.compile imports it by name
    spec.loader.exec_module(module)
    shape = setup.recipe.model
    names = ("block_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    settings = {name: getattr(shape, name) for name in names}
    torch.manual_seed(setup.recipe.train.seed)
    network = module.GPT(module.GPTConfig(vocab_size=setup.padded_vocab_size, **settings))
    for block in network.transformer.h:
        block.mlp.gelu = nn.GELU(approximate="tanh")
    return network


def copy_weights(theirs: nn.Module, ours: GPT) -> None:
    """Copy nanoGPT's weights into ours. The names differ by a prefix; both tie the head."""
    state = theirs.state_dict()
    del state["lm_head.weight"]
    ours.load_state_dict({key.removeprefix("transformer."): state[key] for key in state})
