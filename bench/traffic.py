"""Count the bytes that a compiled step moves through memory, without a GPU.

    python -m bench traffic speedrun n_layer=4 [--micro-batch 2]
    bench/fake_cuda/run python -m bench traffic speedrun n_layer=2 --micro-batch 64 --sass

Compiles the network for this CPU in bfloat16 with the choices that Inductor makes for a GPU, and
adds up Inductor's own count of the bytes that each kernel reads and writes. It does so for one
micro-batch and for one of twice the size: the difference is the cost per token, the rest is the
weights. Use it to compare two ways to write the same computation. The count is not a time: on a
GPU, kernels fuse differently, attention is another kernel, and matrix products are bound by
arithmetic.

With --sass, on the fake CUDA device, it counts instead the warp instructions of each Triton kernel
of one micro-batch, and the time that an H200 needs to issue them: some kernels are bound by that.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from bench import sass
from bench.results import Results
from job.arguments import find_recipe
from job.memory import network_size
from job.recipe import Recipe, load
from model.gpt import GPT
from model.loss import pick_loss

SHOWN_KERNELS = 12


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this bench."""
    parser.add_argument("words", nargs="*", metavar="RECIPE, key=value", help="default: gpt2_124m")
    parser.add_argument(
        "--micro-batch", type=int, default=1, metavar="N", help="sequences in the smaller one (1)"
    )
    parser.add_argument(
        "--sass",
        action="store_true",
        help="on the fake CUDA device: count the instructions of each Triton kernel instead",
    )


def main(arguments: Namespace, results: Results) -> int:
    """Count, and return 0."""
    names = [word for word in arguments.words if "=" not in word]
    recipe = load(
        find_recipe(names[0] if names else "gpt2_124m"),
        [word for word in arguments.words if "=" in word],
    )
    size = arguments.micro_batch
    if arguments.sass:
        count_instructions(recipe, size, results)
        return 0
    few, many = (step_bytes(recipe, n) for n in (size, 2 * size))
    tokens = size * recipe.model.block_size
    for name, moved in many.items():
        results.log(f"{name}, {2 * size} sequences:")
        for kernel, count in sorted(moved.items(), key=lambda pair: -pair[1])[:SHOWN_KERNELS]:
            results.log(f"  {count / 1e6:10.1f} MB  {kernel}")
    passes = {name: (sum(few[name].values()), sum(many[name].values())) for name in many}
    results.add(
        "traffic",
        recipe=recipe.name,
        **{
            f"{name}_kb_per_token": round((b - a) / tokens / 1e3, 1)
            for name, (a, b) in passes.items()
        },
        **{f"{name}_mb_of_weights": round((2 * a - b) / 1e6, 1) for name, (a, b) in passes.items()},
    )
    return 0


def count_instructions(recipe: Recipe, sequences: int, results: Results) -> None:
    """Add a result for each Triton kernel of a micro-batch: instructions and issue time."""
    device = torch.device("cuda")
    network = GPT(recipe.model, network_size(recipe.model, recipe.data.tokenizer).rows).to(device)
    network.loss_chunk = recipe.train.loss_chunk
    network.chunk_loss = pick_loss(device, network.softcap)
    shape = (sequences, recipe.model.block_size)
    tokens = torch.zeros(shape, dtype=torch.int64, device=device)
    forward = torch.compile(network, dynamic=False)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            forward(tokens, tokens).backward()

    kernels: dict[str, list[float]] = {}
    for launch in sass.launched_kernels(step):
        kernels.setdefault(launch.name, []).append(launch.instructions)

    def cost(counts: list[float]) -> dict[str, Any]:
        total = sum(counts)
        milliseconds = total / sass.ISSUE_PER_SECOND * 1e3
        return {
            "launches": len(counts),
            "mega_instructions": round(total / 1e6, 1),
            "issue_ms": round(milliseconds, 3),
        }

    for name, counts in sorted(kernels.items(), key=lambda pair: -sum(pair[1]))[:SHOWN_KERNELS]:
        results.add("kernel", name=name, **cost(counts))
    tokens_in_all = sequences * recipe.model.block_size
    launches = [count for counts in kernels.values() for count in counts]
    results.add("instructions", recipe=recipe.name, tokens=tokens_in_all, **cost(launches))


def step_bytes(recipe: Recipe, sequences: int) -> dict[str, dict[str, int]]:
    """Count the bytes of each kernel, forward and backward, for one micro-batch."""
    network = GPT(recipe.model, network_size(recipe.model, recipe.data.tokenizer).rows)
    shape = (sequences, recipe.model.block_size)
    if recipe.train.loss_chunk is not None:
        network.loss_chunk = max(1, sequences * recipe.model.block_size // 4)
    return traffic(
        network, torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    )


def traffic(function: nn.Module, *inputs: torch.Tensor) -> dict[str, dict[str, int]]:
    """Count the bytes of each kernel of ``function``, which returns a loss, in bfloat16."""
    with _counting() as graphs, torch.autocast("cpu", torch.bfloat16):
        torch.compile(function, dynamic=False, fullgraph=True)(*inputs).backward()
    return dict(zip(("forward", "backward"), graphs, strict=True))


@contextmanager
def _counting() -> Iterator[list[dict[str, int]]]:
    """Collect the graphs that Inductor compiles in this block, each as kernel → bytes."""
    from torch._inductor import config, ir
    from torch._inductor.graph import GraphLowering

    graphs: list[dict[str, int]] = []
    compiled = GraphLowering.codegen

    def counted(graph: Any) -> Any:
        code = compiled(graph)
        graphs.append(
            {_name(i, node): 4 * words for i, (node, words) in enumerate(graph.count_bytes()[1])}
        )
        return code

    with (
        config.patch(force_disable_caches=True),
        # For a CPU Inductor stores an exponential that is used twice; for a GPU it recomputes it.
        patch.object(ir, "is_cpu", lambda *_: False),
        patch("model.gpt.LOW_PRECISION_RESIDUAL", ("cpu",)),
        patch.object(GraphLowering, "codegen", counted),
    ):
        torch._dynamo.reset()
        yield graphs


def _name(number: int, kernel: Any) -> str:
    """Describe a kernel by the torch operations in it."""
    parts = []
    for node in kernel.get_nodes():
        origins = getattr(node.node, "origins", None) or ()
        names = {str(origin.target).removeprefix("aten.").partition(".")[0] for origin in origins}
        parts.append("+".join(sorted(names)) or type(node).__name__)
    return f"{number:3d} {' | '.join(parts)}"
