"""Count the bytes that a compiled step moves through memory, without a GPU.

    python -m bench traffic speedrun n_layer=4 [--micro-batch 2]
    bench/fake_cuda/run python -m bench traffic speedrun n_layer=2 --micro-batch 64 --sass

Compiles the network for this CPU in bfloat16 with the choices that Inductor makes for a GPU, and
adds up Inductor's own count of the bytes that each kernel reads and writes. It does so for one
micro-batch and for one of twice the size: the difference is the cost per token, the rest is the
weights. Use it to compare two ways to write the same computation. The count is not a time: on a
GPU, kernels fuse differently, attention is another kernel, and matrix products are bound by
arithmetic.

With --sass, on the fake CUDA device, it counts for one micro-batch the bytes of all Triton kernels,
and the warp instructions of each with the time that an H200 needs to issue them: some kernels are
bound by that. Products and attention are calls of libraries and are left out.
"""

from __future__ import annotations

import ctypes
import math
import re
import subprocess
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from bench.results import Results
from bench.setup import split_words
from bench.steps import our_network
from job.memory import network_size
from job.recipe import Recipe, load
from model.gpt import GPT

SHOWN_KERNELS = 12
LIBRARY = "library"  # in the name of a kernel that is a library's
# One instruction per cycle for each of the 4 schedulers of 132 multiprocessors at 1.755 GHz (H200).
ISSUE_PER_SECOND = 132 * 4 * 1.755e9
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(.*?);", re.MULTILINE)
BRANCH = re.compile(r"\bBRA(?:\.\S+)? .*?(?:0x|`\(\.L_x_)([0-9a-f]+)")
# Sizes and the block that a loop advances by, as Inductor and model/loss_kernel.py name them.
LOOPS = (("r0_numel", "R0_BLOCK"), ("rnumel", "RBLOCK"), ("V", "BLOCK"))


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
    recipe = load(*split_words(arguments.words, "gpt2_124m"))
    size = arguments.micro_batch
    if arguments.sass:
        count_instructions(recipe, size, results)
        return 0
    few, many = (step_bytes(recipe, n) for n in (size, 2 * size))
    tokens = size * recipe.model.block_size
    figures = {}
    for name, moved in many.items():
        results.log(f"{name}, {2 * size} sequences:")
        for kernel, count in sorted(moved.items(), key=lambda pair: -pair[1])[:SHOWN_KERNELS]:
            results.log(f"  {count / 1e6:10.1f} MB  {kernel}")
        a, b = sum(few[name].values()), sum(moved.values())
        figures[f"{name}_kb_per_token"] = round((b - a) / tokens / 1e3, 1)
        figures[f"{name}_mb_of_weights"] = round((2 * a - b) / 1e6, 1)
    results.add("traffic", recipe=recipe.name, **figures)
    return 0


def count_instructions(recipe: Recipe, sequences: int, results: Results) -> None:
    """Add a result for each Triton kernel of a micro-batch: instructions and issue time."""
    device = torch.device("cuda")
    network = our_network(recipe, network_size(recipe.model, recipe.data.tokenizer).rows, device)
    shape = (sequences, recipe.model.block_size)
    tokens = torch.zeros(shape, dtype=torch.int64, device=device)
    forward = torch.compile(network, dynamic=False)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            forward(tokens, tokens).backward()

    kernels: dict[str, list[float]] = {}
    with _kernel_bytes() as graphs:
        for name, instructions in launched_kernels(step):
            kernels.setdefault(name, []).append(instructions)
    moved = [count for graph in graphs for name, count in graph.items() if LIBRARY not in name]

    def cost(counts: list[float]) -> dict[str, Any]:
        return {
            "launches": len(counts),
            "mega_instructions": round(sum(counts) / 1e6, 1),
            "issue_ms": round(sum(counts) / ISSUE_PER_SECOND * 1e3, 3),
        }

    for name, counts in sorted(kernels.items(), key=lambda pair: -sum(pair[1]))[:SHOWN_KERNELS]:
        results.add("kernel", name=name, **cost(counts))
    launches = [count for counts in kernels.values() for count in counts]
    what = {
        "recipe": recipe.name,
        "tokens": tokens.numel(),
        "gigabytes": round(sum(moved) / 1e9, 2),
    }
    results.add("instructions", **what, **cost(launches))


def step_bytes(recipe: Recipe, sequences: int) -> dict[str, dict[str, int]]:
    """Count the bytes of each kernel, forward and backward, for one micro-batch."""
    network = GPT(recipe.model, network_size(recipe.model, recipe.data.tokenizer).rows)
    tokens = torch.zeros((sequences, recipe.model.block_size), dtype=torch.int64)
    if recipe.train.loss_chunk is not None:
        network.loss_chunk = max(1, tokens.numel() // 4)
    return traffic(network, tokens, tokens.clone())


def traffic(function: nn.Module, *inputs: torch.Tensor) -> dict[str, dict[str, int]]:
    """Count the bytes of each kernel of ``function``, which returns a loss, in bfloat16."""
    with _counting() as graphs, torch.autocast("cpu", torch.bfloat16):
        torch.compile(function, dynamic=False, fullgraph=True)(*inputs).backward()
    return dict(zip(("forward", "backward"), graphs, strict=True))


@contextmanager
def _kernel_bytes() -> Iterator[list[dict[str, int]]]:
    """Collect the graphs that Inductor compiles in this block, each as kernel → bytes."""
    from torch._inductor.graph import GraphLowering

    graphs: list[dict[str, int]] = []
    compiled = GraphLowering.codegen

    def counted(graph: Any) -> Any:
        code = compiled(graph)
        graphs.append(
            {_name(i, node): 4 * words for i, (node, words) in enumerate(graph.count_bytes()[1])}
        )
        return code

    with patch.object(GraphLowering, "codegen", counted):
        yield graphs


@contextmanager
def _counting() -> Iterator[list[dict[str, int]]]:
    """Collect the same on a CPU, with the choices of a GPU."""
    from torch._inductor import config, ir

    with (
        config.patch(force_disable_caches=True),
        # For a CPU Inductor stores an exponential that is used twice; for a GPU it recomputes it.
        patch.object(ir, "is_cpu", lambda *_: False),
        patch("model.gpt.MEMORY_BOUND", ("cpu",)),
        _kernel_bytes() as graphs,
    ):
        torch._dynamo.reset()
        yield graphs


def _name(number: int, kernel: Any) -> str:
    """Describe a kernel by the torch operations in it."""
    from torch._inductor import ir

    is_ours = not isinstance(kernel.node, ir.ExternKernel)
    is_ours |= isinstance(kernel.node, ir.UserDefinedTritonKernel)
    parts = [] if is_ours else [LIBRARY]
    for node in kernel.get_nodes():
        origins = getattr(node.node, "origins", None) or ()
        names = {str(origin.target).removeprefix("aten.").partition(".")[0] for origin in origins}
        parts.append("+".join(sorted(names)) or type(node).__name__)
    return f"{number:3d} {' | '.join(parts)}"


def launched_kernels(step: Callable[[], object]) -> list[tuple[str, float]]:
    """Run ``step`` on the fake CUDA device; return the warp instructions of each Triton launch.

    Counts them in the machine code (SASS): kernels are only compiled and disassembled there.
    """
    from torch._inductor import config
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    driver = ctypes.CDLL("libcuda.so.1")
    costs: list[tuple[str, float]] = []
    run = CachingAutotuner.run
    cubins: dict[int, tuple[int, list[tuple[int, int]]]] = {}

    def recorded(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        result = run(kernel, *args, **kwargs)  # type: ignore[no-untyped-call]
        if not kwargs.get("benchmark_run"):
            (launcher,) = kernel.launchers
            if id(launcher) not in cubins:
                cubins[id(launcher)] = parse_sass(disassemble(kernel))
            values = {
                **dict(zip(kernel.fn.arg_names, args, strict=False)),
                **kernel.triton_meta.get("constants", {}),
            }
            values = {key: value for key, value in values.items() if isinstance(value, int)}
            values |= launcher.config.kwargs
            programs = math.prod(driver.fake_cuda_grid(axis) for axis in range(3))
            warps = programs * launcher.config.num_warps
            per_warp = instructions_per_warp(*cubins[id(launcher)], values)
            costs.append((kernel.fn.__name__, warps * per_warp))
        return result

    with (
        config.patch(use_static_cuda_launcher=False, force_disable_caches=True),
        patch.object(CachingAutotuner, "run", recorded),
    ):
        step()
    return costs


def disassemble(kernel: Any) -> str:
    """Return the SASS of a Triton kernel, by Triton's copy of cuobjdump."""
    from triton import knobs

    (result,) = kernel.compile_results
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(result.kernel.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def parse_sass(sass: str) -> tuple[int, list[tuple[int, int]]]:
    """Return the number of instructions, and the (first, last) index of each loop."""
    lines = INSTRUCTION.findall(sass)
    # The code ends with a branch to itself and padding.
    end = next(i for i in range(len(lines) - 1, -1, -1) if "EXIT" in lines[i][1]) + 1
    index = {int(address, 16): i for i, (address, _) in enumerate(lines[:end])}
    loops = []
    for i, (_, text) in enumerate(lines[:end]):
        target = BRANCH.search(text)
        if target and (first := index.get(int(target[1], 16))) is not None and first < i:
            loops.append((first, i))
    return end, loops


def instructions_per_warp(
    count: int, loops: list[tuple[int, int]], values: Mapping[str, Any]
) -> float:
    """Weight each loop by its trips; code outside of loops runs once."""
    trips = 1
    for size, block in LOOPS:
        if size in values and block in values:
            trips = math.ceil(values[size] / values[block])
            break
    return count + sum(last - first + 1 for first, last in loops) * (trips - 1)
