"""Train the networks of ours and of the baselines in turns, on the same batches.

    python -m bench steps --text input.txt --baseline nanogpt=../nanoGPT --baseline hf \\
        --baseline nanochat=../nanochat [--steps 100] [dtype=float32]

The recipe's shape. For nanogpt and hf ours is variant gpt2, and all start from the same weights;
biases are off, as in nanoGPT, unless hf is there, which can't do without. One thing in nanoGPT is
changed: its exact GELU becomes the tanh form, which GPT-2 and ours use. For nanochat ours is
variant modern with as many value embeddings; nanochat's gates and scalars have no counterpart.

All have AdamW, the recipe's rates and decay, and the threads of this process, in which they take
turns at every step. Each runs as its own trainer runs it: ours in the recipe's number format,
compiled unless --no-compile; the baselines on CUDA in bfloat16 and compiled, on the CPU in float32
and not compiled, except nanochat, whose trainer always compiles.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from bench.baseline_loop import (
    Batches,
    Loss,
    compute_gradients,
    decayed_matrices,
    hugging_face_loss,
    hugging_face_network,
    nanochat_network,
)
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
from model.optim import Optimizer, make_optimizers

SAME = ("variant=gpt2", "dropout=0.0", "optimizer=adamw", "embedding_lr_scale=1.0")
# Baseline → the network of ours that it is compared with.
COUNTERPARTS = {"nanogpt": "ours", "hf": "ours", "nanochat": "ours_modern"}
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
    names = {word.partition("=")[0] for word in arguments.baseline}
    if not names or names - set(COUNTERPARTS):
        raise UserError(f"expected --baseline with some of: {', '.join(COUNTERPARTS)}")
    bias = f"bias={str('hf' in names).lower()}"
    with prepare_setup(arguments, results, *SAME, bias) as setup:
        figures = run(setup, arguments.steps, arguments.compile)
        what = {"recipe": setup.recipe.name, "device": setup.device, "compiled": arguments.compile}
        results.add("steps", **what, **figures)
    return 0


def run(setup: Setup, steps: int, compiled: bool) -> dict[str, Any]:
    """Train all for ``steps`` steps, or until time runs out, and return the figures."""
    device, recipe = torch.device(setup.device), setup.recipe
    step_functions = make_step_functions(setup, compiled)
    stream, context = setup.stream("train"), recipe.model.block_size
    order = BatchOrder(len(stream), context, recipe.sequences_per_step, recipe.train.seed)
    batches, size = TokenBatches(stream, context, device), setup.micro_batch(None)
    losses: dict[str, list[float]] = {name: [] for name in step_functions}
    seconds: dict[str, list[float]] = {name: [] for name in step_functions}
    turns = list(step_functions)
    for step in range(steps):
        if setup.results.seconds_left() < 5:
            break
        parts = [batches.take(starts) for starts in micro_batches(order.windows(step), 0, 1, size)]
        rate = learning_rate(step, recipe.train)
        for name in turns:
            started = time.perf_counter()
            losses[name].append(step_functions[name](parts, rate))
            seconds[name].append(time.perf_counter() - started)
        turns.append(turns.pop(0))  # another one goes first
    medians = {name: median(settled(of)) for name, of in seconds.items()}
    figures: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "steps": len(losses[turns[0]]),
        "tokens_per_second": {
            name: round(recipe.train.global_batch_tokens / of) for name, of in medians.items()
        },
        "ms_median": {name: round(of * 1e3, 3) for name, of in medians.items()},
        "first_losses": {name: of[0] for name, of in losses.items()},
        "last_losses": {name: of[-1] for name, of in losses.items()},
    }
    pairs = [(name, COUNTERPARTS[name]) for name in medians if name in COUNTERPARTS]
    figures["ours_speedup"] = {
        name: round(medians[name] / medians[ours], 4) for name, ours in pairs
    }
    figures["largest_difference_of_losses"] = {
        name: max(abs(a - b) for a, b in zip(losses[name], losses[ours], strict=True))
        for name, ours in pairs
        if ours == "ours"  # the same network
    }
    return figures


def make_step_functions(setup: Setup, compiled: bool) -> dict[str, StepFunction]:
    """Build each baseline next to its counterpart, with the same weights where it is the same."""
    device, rows = torch.device(setup.device), setup.tokenizer.padded_vocab_size
    functions: dict[str, StepFunction] = {}
    if {"nanogpt", "hf"} & set(setup.baselines):
        torch.manual_seed(setup.recipe.train.seed)
        ours = our_network(setup.recipe, rows, device)
        functions["ours"] = our_step(setup, ours, compiled)
        if "nanogpt" in setup.baselines:
            theirs = nanogpt(setup)
            copy_weights(theirs, ours)
            functions["nanogpt"] = nanogpt_step(setup, theirs)
        if "hf" in setup.baselines:
            network = hugging_face_network(setup)
            copy_to_hugging_face(ours, network)
            functions["hf"] = baseline_step(setup, network, hugging_face_loss(network))
    if "nanochat" in setup.baselines:
        count = (setup.recipe.model.n_layer + 1) // 2
        modern = setup.with_overrides("variant=modern", f"value_embeddings={count}")
        ours = our_network(modern.recipe, rows, device)
        functions["ours_modern"] = our_step(modern, ours, compiled)
        chat, _ = nanochat_network(setup, setup.recipe.model.n_head)
        functions["nanochat"] = baseline_step(setup, chat, chat, compiled=True)
    return functions


def our_network(recipe: Recipe, rows: int, device: torch.device) -> GPT:
    """Build the recipe's network with ``rows`` tokens, and the loss that the trainer picks."""
    network = GPT(recipe.model, rows)
    network.loss_chunk = recipe.train.loss_chunk
    network.chunk_loss = pick_loss(device, network.softcap)
    return network.to(device)


def our_step(setup: Setup, network: GPT, compiled: bool) -> StepFunction:
    """Return a function that trains ``network`` as model/step.py does."""
    config, device = setup.recipe.train, torch.device(setup.device)
    optimizers = make_optimizers(network, config, World(device=device))
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
    config = setup.recipe.train
    betas = (config.beta1, config.beta2)
    network.to(setup.device)
    optimizer = network.configure_optimizers(config.weight_decay, config.lr, betas, setup.device)
    return baseline_step(setup, network, lambda x, y: network(x, y)[1], optimizer)


def baseline_step(
    setup: Setup,
    network: nn.Module,
    loss_of: Loss,
    optimizer: torch.optim.Optimizer | None = None,
    compiled: bool = False,
) -> StepFunction:
    """Return a function that trains ``network``, by default with fused AdamW."""
    config, on_cpu = setup.recipe.train, setup.device == "cpu"
    if optimizer is None:
        groups, betas = decayed_matrices(network, config.weight_decay), (config.beta1, config.beta2)
        optimizer = torch.optim.AdamW(groups, config.lr, betas, config.adam_eps, fused=True)
    dtype = "float32" if on_cpu else "bfloat16"
    return step_function(setup, network, loss_of, [optimizer], dtype, compiled or not on_cpu)


def step_function(
    setup: Setup,
    network: nn.Module,
    loss_of: Loss,
    optimizers: Sequence[Optimizer | torch.optim.Optimizer],
    dtype: str,
    compiled: bool,
) -> StepFunction:
    """Return a function that takes one optimizer step and returns its loss."""
    forward: Loss = torch.compile(loss_of, dynamic=False) if compiled else loss_of
    device, config = torch.device(setup.device), setup.recipe.train

    def step(parts: Batches, rate: float) -> float:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        autocast = partial(devices.autocast, dtype, device)
        total = compute_gradients(forward, parts, autocast)
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
    network = module.GPT(module.GPTConfig(vocab_size=setup.tokenizer.padded_vocab_size, **settings))
    for block in network.transformer.h:
        block.mlp.gelu = nn.GELU(approximate="tanh")
    return network


def copy_weights(theirs: nn.Module, ours: GPT) -> None:
    """Copy nanoGPT's weights into ours. The names differ by a prefix; both tie the head."""
    state = theirs.state_dict()
    del state["lm_head.weight"]
    ours.load_state_dict({key.removeprefix("transformer."): state[key] for key in state})


@torch.no_grad()
def copy_to_hugging_face(ours: GPT, theirs: Any) -> None:
    """Copy our weights into transformers' GPT-2, whose projections are transposed."""
    state = ours.state_dict()
    for name, weight in theirs.transformer.state_dict().items():
        is_projection = ".c_" in name and weight.dim() == 2
        weight.copy_(state[name].mT if is_projection else state[name])
