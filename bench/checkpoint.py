"""Measure the share of training time that a checkpoint every 100 steps costs.

    python -m bench checkpoint --text input.txt
    python -m bench checkpoint gpt2_124m --text novels.txt.xz --minutes 9

Runs with and without checkpoints take turns. The time is that of the steps after the first tenth,
plus the stalls, so it includes what the background writer takes from the steps. Each run continues
for half an interval after its last checkpoint, to include that write too.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from statistics import median

from bench.results import Measurement, Results
from bench.setup import Task, add_setup_arguments, prepare_setup
from bench.trainers import NEVER, train_ours


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this bench."""
    add_setup_arguments(parser)
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints (100)")
    parser.add_argument("--checkpoints", type=int, default=3, help="checkpoints in each run (3)")
    parser.add_argument("--repeats", type=int, default=2, help="pairs of runs (2)")


def main(arguments: Namespace, results: Results) -> int:
    """Return 0 if at least one pair was measured."""
    every, steps = arguments.every, round(arguments.every * (arguments.checkpoints + 0.5))
    shares = []
    with prepare_setup(arguments, results) as setup:
        recipe = setup.recipe.name
        for turn in range(1, arguments.repeats + 1):
            if not setup.has_time(f"pair {turn}"):
                break
            with results.record_failure(part="checkpoint", turn=turn):
                pair = {}
                for name, interval in (("without", NEVER), ("with", every)):
                    results.log(f"pair {turn}: {steps} steps {name} checkpoints")
                    override = f"checkpoint_every={interval}"
                    pair[name] = train_ours(setup, Task(f"{name}-{turn}", steps), [override], 10)
                without, stalls = _seconds(pair["without"]), pair["with"].extra["stalls"]
                shares.append((_seconds(pair["with"]) + sum(stalls)) / without - 1)
                results.add(
                    "checkpoint pair",
                    recipe=recipe,
                    every=every,
                    share=round(shares[-1], 5),
                    seconds_without=round(without, 3),
                    stalls_ms=[round(stall * 1e3, 2) for stall in stalls],
                    stalls_share=round(sum(stalls) / without, 5),
                    ms_median_without=round(pair["without"].median_seconds * 1e3, 3),
                    ms_median_with=round(pair["with"].median_seconds * 1e3, 3),
                )
        if shares:
            share = round(median(shares), 5)
            results.add("checkpoint", recipe=recipe, every=every, share=share)
    return 0 if shares else 1


def _seconds(run: Measurement) -> float:
    """Return the time of the steps after the first tenth, which holds compilation."""
    return sum(step.seconds for step in run.steps[len(run.steps) // 10 :])
