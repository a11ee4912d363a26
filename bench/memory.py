"""Measure the peak memory of a step, for each trainer at the same micro-batch.

    python -m bench memory gpt2_124m --text novels.txt.xz --baseline nanogpt=../nanoGPT

On CUDA this is torch's peak of allocated memory; on the CPU the largest resident set of the
process. A step is one micro-batch, so that no trainer accumulates gradients.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from bench.results import Results
from bench.setup import Task, add_setup_arguments, prepare_setup
from bench.trainers import select_trainers

STEPS = 8
CUDA_MICRO_BATCH = 64


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this bench."""
    add_setup_arguments(parser)
    parser.add_argument(
        "--micro-batch", type=int, metavar="N", help="default: 64 on CUDA, otherwise the recipe's"
    )


def main(arguments: Namespace, results: Results) -> int:
    """Return 0 if every trainer was measured."""
    peaks: dict[str, float] = {}
    with prepare_setup(arguments, results) as setup:
        size = arguments.micro_batch
        size = size or (CUDA_MICRO_BATCH if setup.device == "cuda" else setup.micro_batch(None))
        context = setup.recipe.model.block_size
        setup = setup.with_overrides(f"global_batch_tokens={size * context}", f"micro_batch={size}")
        trainers = select_trainers(setup, arguments.only)
        for name, train in trainers.items():
            if not setup.has_time(name):
                continue
            with results.record_failure(part="memory", trainer=name):
                results.log(f"{name} at {size} x {context}")
                run = train(setup, Task(f"{name}-memory", STEPS, size))
                peaks[name] = (run.peak_memory_bytes or 0) / 1e9
                ours = peaks.get("ours")
                results.add(
                    "memory",
                    recipe=setup.recipe.name,
                    device=setup.device,
                    trainer=name,
                    micro_batch=size,
                    peak_memory_gb=round(peaks[name], 3),
                    of_ours=round(peaks[name] / ours, 3) if ours else None,
                    ms_median=round(run.median_seconds * 1e3, 3),
                )
    return 0 if len(peaks) == len(trainers) else 1
