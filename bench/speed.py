"""Measure tokens per second, memory, compilation and checkpoints, next to baselines.

    python -m bench speed --text input.txt --baseline nanogpt=../nanoGPT
    python -m bench speed gpt2_124m --text novels.txt.xz --baseline nanogpt=../nanoGPT --minutes 9

The trainers take turns (A B A B), so that a machine that slows down slows all of them. Every
trainer reads its loss at each step, and its time includes that. The first turn compiles with an
empty cache (unless CACHE_PATH holds an earlier one), the second with a warm cache.

On CUDA, nanoGPT's micro-batch is tried at 64, 128, ... until it stops getting faster or runs out
of memory. The other baselines take the same size, and halve it if they run out of memory.
--baseline-micro-batch sets it instead.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from statistics import median

from bench.results import Measurement, Results, RunFailed, print_table
from bench.setup import Setup, Task, add_setup_arguments, prepare_setup
from bench.trainers import Train, select_trainers

MIN_GAIN = 1.01  # of a larger micro-batch, to try the next one
TRIAL_STEPS = 12
FIRST_TRIAL, SMALLEST_TRIAL = 64, 16  # sequences


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this bench."""
    add_setup_arguments(parser)
    parser.add_argument("--steps", type=int, default=40, help="steps in each turn (40)")
    parser.add_argument("--repeats", type=int, default=2, help="turns of each trainer (2)")
    parser.add_argument(
        "--baseline-micro-batch", type=int, metavar="N", help="skip the trials and use this size"
    )


def main(arguments: Namespace, results: Results) -> int:
    """Return 0 if ours was measured."""
    with prepare_setup(arguments, results) as setup:
        return compare(setup, arguments)


def compare(setup: Setup, arguments: Namespace) -> int:
    """Measure the turns; add a result for each turn, then a summary of each trainer."""
    results = setup.results
    trainers = select_trainers(setup, arguments.only)
    if not any(setup.volumes.cache.glob("roofline/*")):
        with results.record_failure(part="roofline"):
            setup.run_python("roofline", "-m", "bench.roofline", "--device", setup.device)
    micro_batches: dict[str, int | None] = dict.fromkeys(trainers, arguments.baseline_micro_batch)
    trial: Measurement | None = None
    turns: dict[str, list[Measurement]] = {name: [] for name in trainers}
    for turn in range(1, arguments.repeats + 1):
        for name, train in trainers.items():
            # Ours comes before nanoGPT's trials, so that they cannot spend its time.
            if name == "nanogpt" and turn == 1 and arguments.baseline_micro_batch is None:
                with results.record_failure(part="micro-batch", trainer=name):
                    best_size, trial = best_micro_batch(setup, name, train)
                    micro_batches = dict.fromkeys(trainers, best_size)
            needed = turns[name][-1].wall_seconds if turns[name] else None
            if not setup.has_time(f"turn {turn} of {name}", needed):
                continue
            with results.record_failure(part="speed", trainer=name, turn=turn):
                results.log(f"turn {turn}: {name}")
                size = None if name == "ours" else micro_batches[name]
                run = train_if_it_fits(setup, train, Task(f"{name}-{turn}", arguments.steps, size))
                turns[name].append(run)
                micro_batches[name] = run.micro_batch
                results.add("turn", trainer=name, turn=turn, **run.to_json())
    cold = {name: runs[0].compile_seconds for name, runs in turns.items() if runs and setup.is_cold}
    if trial is not None and setup.is_cold:  # the trial filled the cache for the turns
        cold["nanogpt"] = trial.compile_seconds
    ours = turns.get("ours", [])
    rows = [summarize(name, runs, ours, cold.get(name)) for name, runs in turns.items() if runs]
    for row in rows:
        results.add("speed", recipe=setup.recipe.name, device=setup.device, **row)
    print_table(rows)
    return 0 if ours else 1


def summarize(
    name: str,
    turns: list[Measurement],
    ours: list[Measurement],
    cold_seconds: float | None = None,
) -> dict[str, object]:
    """Summarize a trainer's turns, with the speedup of ours over it.

    ``cold_seconds``: compilation time with an empty cache.
    """
    rows = [turn.to_json() for turn in turns]
    pairs = [
        round(theirs.median_seconds / own.median_seconds, 4)
        for own, theirs in zip(ours, turns, strict=False)
    ]
    has_pairs = bool(pairs) and name != "ours"
    return {
        "trainer": name,
        **rows[-1],
        "ms_median": median(row["ms_median"] for row in rows),
        "ms_p10": min(row["ms_p10"] for row in rows),
        "tokens_per_second": round(median(row["tokens_per_second"] for row in rows)),
        "compile_seconds": None,
        "compile_cold_seconds": round(cold_seconds, 2) if cold_seconds is not None else None,
        "compile_warm_seconds": rows[1]["compile_seconds"] if len(rows) > 1 else None,
        "ours_speedup": round(median(pairs), 4) if has_pairs else None,
        "pairs": pairs if has_pairs else None,
    }


def train_if_it_fits(setup: Setup, train: Train, task: Task) -> Measurement:
    """Train, halving the micro-batch while memory runs out. Raises RunFailed on other failures."""
    while True:
        try:
            return train(setup, task)
        except RunFailed as error:
            if not error.out_of_memory or (task.micro_batch or 1) < 2:
                raise
            task = replace(task, micro_batch=(task.micro_batch or 2) // 2)
            setup.results.log(f"{task.name}: out of memory; retrying with {task.micro_batch}")


def best_micro_batch(setup: Setup, name: str, train: Train) -> tuple[int, Measurement | None]:
    """Return the fastest micro-batch and its trial; on the CPU the recipe's, without a trial."""
    if setup.device != "cuda":
        return setup.micro_batch(None), None
    best: Measurement | None = None
    sequences = setup.recipe.sequences_per_step
    size = min(FIRST_TRIAL, sequences)
    while size <= sequences and setup.has_time(f"micro-batch {size} of {name}"):
        try:
            run = train(setup, Task(f"{name}-trial-{size}", TRIAL_STEPS, size))
        except RunFailed as error:
            if not error.out_of_memory or (best is None and size <= SMALLEST_TRIAL):
                raise
            setup.results.add("trial", trainer=name, micro_batch=size, out_of_memory=True)
            if best is not None:
                break
            size, sequences = size // 2, size // 2
            continue
        setup.results.add("trial", trainer=name, **run.to_json())
        is_worth_it = best is None or best.median_seconds > MIN_GAIN * run.median_seconds
        if best is None or run.median_seconds < best.median_seconds:
            best = run
        if not is_worth_it:
            break
        size *= 2
    return (best.micro_batch if best is not None else size), best
