"""What a checkpoint every 100 steps costs, as a share of training time.

    python -m bench checkpoint --text input.txt
    python -m bench checkpoint gpt2_124m --text novels.txt.xz --minutes 9

Runs with and without checkpoints take turns. The time is that of all steps behind the first tenth, and of the
stalls: what writing in the background takes from the steps is in it. Each run goes half an interval beyond its
last checkpoint, so that its write is in it as well.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from statistics import median

from bench import setup as setups
from bench.contenders import Task, ours
from bench.measured import Measured
from bench.process import guarded
from bench.results import Results


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this bench."""
    setups.add_arguments(parser)
    parser.add_argument("--recipe", metavar="RECIPE", help="the same as RECIPE")
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints (100)")
    parser.add_argument("--checkpoints", type=int, default=3, help="in each run (3)")
    parser.add_argument("--repeats", type=int, default=2, help="pairs of runs (2)")


def main(arguments: Namespace, results: Results) -> int:
    """The entry: 0 where a pair was measured."""
    arguments.words += [arguments.recipe] if arguments.recipe else []
    steps = round(arguments.every * (arguments.checkpoints + 0.5))
    shares = []
    with setups.setup(arguments, results) as setup:
        for turn in range(arguments.repeats):
            if not setup.has_time(f"pair {turn + 1}"):
                break
            with guarded(results, part="checkpoint", turn=turn + 1):
                pair = {}
                for name, every in (("without", ours.NEVER), ("with", arguments.every)):
                    results.say(f"pair {turn + 1}: {steps} steps {name} checkpoints")
                    settings = [f"checkpoint_every={every}"]
                    pair[name] = ours.train(
                        setup, Task(f"{name}-{turn + 1}", steps), settings, log_every=10
                    )
                without, stalls = seconds(pair["without"]), pair["with"].more["stalls"]
                shares.append((seconds(pair["with"]) + sum(stalls)) / without - 1)
                results.add(
                    "checkpoint pair",
                    recipe=setup.recipe.name,
                    every=arguments.every,
                    share=round(shares[-1], 5),
                    seconds_without=round(without, 3),
                    stalls_ms=[round(stall * 1e3, 2) for stall in stalls],
                    stalls_share=round(sum(stalls) / without, 5),
                    ms_median_without=round(pair["without"].median * 1e3, 3),
                    ms_median_with=round(pair["with"].median * 1e3, 3),
                )
        if shares:
            results.add(
                "checkpoint",
                recipe=setup.recipe.name,
                every=arguments.every,
                share=round(median(shares), 5),
            )
    return 0 if shares else 1


def seconds(run: Measured) -> float:
    """Of the steps behind the first tenth, where compilation and the allocator are."""
    return sum(step.seconds for step in run.steps[len(run.steps) // 10 :])
