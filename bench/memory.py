"""Peak memory of a step, ours against nanoGPT's, both at the same micro-batch.

    python -m bench memory gpt2_124m --text novels.txt.xz --peer nanogpt=../nanoGPT [--micro-batch 64]

On CUDA torch's own peak of what was allocated in the process, in which neither keeps anything else; on the CPU
the process's largest resident set. One micro-batch is a step, so that nothing is accumulated.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from bench import setup as setups
from bench.contenders import Task, contenders
from bench.process import guarded
from bench.results import Results

STEPS = 8


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this bench."""
    setups.add_arguments(parser)
    parser.add_argument(
        "--micro-batch", type=int, metavar="N", help="64 on CUDA, else the recipe's"
    )


def main(arguments: Namespace, results: Results) -> int:
    """The entry: 0 where all were measured."""
    peaks: dict[str, float] = {}
    with setups.setup(arguments, results) as setup:
        size = arguments.micro_batch or (64 if setup.device == "cuda" else setup.micro_batch(None))
        tokens = size * setup.recipe.model.block_size
        setup = setup.with_overrides(f"global_batch_tokens={tokens}", f"micro_batch={size}")
        running = contenders(setup, arguments.only)
        for name, contender in running.items():
            if setup.has_time(name):
                with guarded(results, part="memory", contender=name):
                    results.say(f"{name} at {size} x {setup.recipe.model.block_size}")
                    found = contender.train(setup, Task(f"{name}-memory", STEPS, size))
                    peaks[name] = (found.peak_memory_bytes or 0) / 1e9
                    results.add(
                        "memory",
                        recipe=setup.recipe.name,
                        device=setup.device,
                        contender=name,
                        micro_batch=size,
                        peak_memory_gb=round(peaks[name], 3),
                        of_ours=round(peaks[name] / peaks["ours"], 3)
                        if peaks.get("ours")
                        else None,
                        ms_median=round(found.median * 1e3, 3),
                    )
    return 0 if len(peaks) == len(running) else 1
