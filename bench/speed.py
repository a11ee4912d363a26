"""Tokens a second, memory, compilation and checkpoints of a recipe, against peers on the same tokens.

    python -m bench speed --text input.txt --peer nanogpt=../nanoGPT
    python -m bench speed gpt2_124m --text novels.txt.xz --peer nanogpt=../nanoGPT --peer hf --minutes 9

The contenders take turns, `--repeats` times: the machine is the same for all. A step's time is taken with its
loss read back, in each of them. The first turn compiles with an empty cache, if CACHE_PATH names none that holds
something, the second with a warm one. nanoGPT's micro-batch is tried upward until it is no faster or out of memory, and
the other peers take the same, or half of it where they run out of memory; --peer-micro-batch gives it instead.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from statistics import median

from bench import setup as setups
from bench.contenders import Contender, Task, contenders
from bench.measured import Measured
from bench.process import Failed, guarded
from bench.results import Results
from bench.setup import Setup
from bench.table import print_table

FASTER = 1.01  # a larger micro-batch must gain at least this to be tried further
TRIAL_STEPS = 12
SMALLEST_TRIED = 32


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this bench."""
    setups.add_arguments(parser)
    parser.add_argument("--steps", type=int, default=40, help="steps in each turn (40)")
    parser.add_argument("--repeats", type=int, default=2, help="turns of each contender (2)")
    parser.add_argument("--peer-micro-batch", type=int, metavar="N", help="instead of trying")


def main(arguments: Namespace, results: Results) -> int:
    """The entry: 0 where ours was measured."""
    with setups.setup(arguments, results) as setup:
        return compare(setup, arguments)


def compare(setup: Setup, arguments: Namespace) -> int:
    """The turns; each is a result, then one line for each contender."""
    results = setup.results
    running = contenders(setup, arguments.only)
    if not any(setup.volumes.cache.glob("roofline/*")):
        with guarded(results, part="roofline"):
            setup.python("roofline", "-m", "bench.roofline", "--device", setup.device)
    micro_batch = arguments.peer_micro_batch
    tried: Measured | None = None
    if "nanogpt" in running and micro_batch is None:
        with guarded(results, part="micro-batch", contender="nanogpt"):
            micro_batch, tried = best_micro_batch(setup, "nanogpt", running["nanogpt"])
    micro_batches = {name: None if name == "ours" else micro_batch for name in running}
    turns: dict[str, list[Measured]] = {name: [] for name in running}
    for turn in range(arguments.repeats):
        for name, contender in running.items():
            needs = turns[name][-1].wall_seconds if turns[name] else None
            if setup.has_time(f"turn {turn + 1} of {name}", needs):
                with guarded(results, part="speed", contender=name, turn=turn + 1):
                    results.say(f"turn {turn + 1}: {name}")
                    task = Task(f"{name}-{turn + 1}", arguments.steps, micro_batches[name])
                    turns[name].append(train_if_it_fits(setup, contender, task))
                    micro_batches[name] = turns[name][-1].micro_batch if name != "ours" else None
                    results.add("turn", contender=name, turn=turn + 1, **turns[name][-1].facts())
    cold = {name: of[0].compile_seconds for name, of in turns.items() if of and setup.cold}
    if tried is not None and setup.cold:  # the trial has filled the cache for the turns
        cold["nanogpt"] = tried.compile_seconds
    rows = [
        summary(name, of, turns.get("ours", []), cold.get(name)) for name, of in turns.items() if of
    ]
    for row in rows:
        results.add("speed", recipe=setup.recipe.name, device=setup.device, **row)
    print_table(rows)
    return 0 if turns.get("ours") else 1


def summary(
    name: str, turns: list[Measured], ours: list[Measured], cold: float | None = None
) -> dict[str, object]:
    """One contender over its turns, and how many times as many tokens a second ours takes. ``cold``: seconds of
    compiling with an empty cache."""
    facts = [turn.facts() for turn in turns]
    pairs = [round(b.median / a.median, 4) for a, b in zip(ours, turns, strict=False)]
    return {
        "contender": name,
        **facts[-1],
        "ms_median": median(fact["ms_median"] for fact in facts),
        "ms_p10": min(fact["ms_p10"] for fact in facts),
        "tokens_per_second": round(median(fact["tokens_per_second"] for fact in facts)),
        "compile_seconds": None,
        "compile_cold_seconds": round(cold, 2) if cold is not None else None,
        "compile_warm_seconds": facts[1]["compile_seconds"] if len(facts) > 1 else None,
        "ours_is_faster": round(median(pairs), 4) if pairs and name != "ours" else None,
        "pairs": pairs if pairs and name != "ours" else None,
    }


def train_if_it_fits(setup: Setup, contender: Contender, task: Task) -> Measured:
    """Train, with half the micro-batch where the memory is too small; Failed for any other reason."""
    while True:
        try:
            return contender.train(setup, task)
        except Failed as failed:
            if not failed.out_of_memory or (task.micro_batch or 1) < 2:
                raise
            task = replace(task, micro_batch=(task.micro_batch or 2) // 2)
            setup.results.say(
                f"{task.name} is out of memory; again with micro-batches of {task.micro_batch}"
            )


def best_micro_batch(setup: Setup, name: str, contender: Contender) -> tuple[int, Measured | None]:
    """The fastest and its trial, trying twice as many sequences each time; the recipe's where there is no memory of a
    GPU to fill."""
    if setup.device != "cuda":
        return setup.micro_batch(None), None
    best: Measured | None = None
    sequences = setup.recipe.sequences_per_step
    size = min(SMALLEST_TRIED, sequences)
    while size <= sequences and setup.has_time(f"micro-batch {size} of {name}"):
        try:
            found = contender.train(setup, Task(f"{name}-trial-{size}", TRIAL_STEPS, size))
        except Failed as failed:
            if not failed.out_of_memory or best is None:
                raise
            setup.results.add("trial", contender=name, micro_batch=size, out_of_memory=True)
            break
        setup.results.add("trial", contender=name, **found.facts())
        paid = best is None or best.median > FASTER * found.median
        if best is None or found.median < best.median:
            best = found
        if not paid:
            break
        size *= 2
    return (best.micro_batch if best is not None else size), best
