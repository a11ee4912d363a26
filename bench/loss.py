"""Measure the time to a loss, for ours and the baselines, with one evaluation for all.

    python -m bench loss novels gpt2_124m --text novels.txt.xz --baseline nanogpt=../nanoGPT
    python -m bench loss shakespeare --text input.txt --baseline nanogpt=../nanoGPT
    python -m bench loss cpu --text input.txt --baseline nanogpt=../nanoGPT [--repeats 2]

novels: 256 steps of 131,072 tokens (33.5 million), then the loss over 1,048,576 held-out tokens.
Each trainer runs with three learning rates, and its best run counts. The baselines come first.
Then ours trains whole runs on a growing share of the tokens until it reaches each baseline's best
loss (`time to a loss`), and last on all of them. A later call with the same --out continues.
shakespeare: wall time until a validation loss of 1.4697, the figure in nanoGPT's README.
cpu: shakespeare_char_cpu next to the CPU command of nanoGPT's README, each as a whole process.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from typing import Any

from bench.results import Results
from bench.setup import Setup, Task, add_setup_arguments, prepare_setup
from bench.trainers import (
    NANOGPT_EVALUATION,
    NANOGPT_README_CPU,
    NANOGPT_README_GPU,
    evaluate_nanogpt,
    select_trainers,
    train_as_in_readme,
    train_ours,
)
from job.metrics import read_metrics

NOVELS = ("global_batch_tokens=131072", "warmup_steps=25", "decay_steps=null", "val_fraction=0.2")
SHAKESPEARE_TARGET = 1.4697
# For `time to a loss`: few tokens teach more in small steps. In a small trial on the CPU (6 layers,
# 256 wide, 0.39M tokens), halving the step from 4,096 to 2,048 tokens lowered the loss by 0.12.
STEP_SHRINK = 8
TOKEN_SHARES = (32, 16, 8, 4, 2)  # 1/32 of the tokens, 1/16, ...
# Base learning rates; a trainer that is not listed uses the recipe's. nanochat's is a factor.
BASE_RATES = {"nanogpt": 1e-3, "hf": 1e-3, "nanochat": 1.0}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this bench."""
    add_setup_arguments(parser)
    parser.add_argument("--steps", type=int, default=256, help="novels: steps (256)")
    parser.add_argument(
        "--val-tokens", type=int, default=1 << 20, help="novels: held-out tokens (1,048,576)"
    )
    parser.add_argument(
        "--rates", default="0.5,1,2", help="novels: factors on each learning rate (0.5,1,2)"
    )
    parser.add_argument("--repeats", type=int, default=1, help="cpu: pairs (1)")


def main(arguments: Namespace, results: Results) -> int:
    """Return 0 if ours was measured."""
    kinds = {"novels": novels, "shakespeare": shakespeare, "cpu": cpu}
    kind = next((word for word in arguments.words if word in kinds), "cpu")
    arguments.words = [word for word in arguments.words if word not in kinds]
    if kind != "novels" and all("=" in word for word in arguments.words):
        recipe = "shakespeare_char_cpu" if kind == "cpu" else "shakespeare_char"
        arguments.words.insert(0, recipe)
    if kind == "cpu":
        arguments.device = "cpu"
    defaults = NOVELS if kind == "novels" else ()
    with prepare_setup(arguments, results, *defaults, has_one_size=bool(defaults)) as setup:
        kinds[kind](setup, arguments)
    return 0 if results.has_trainer("ours") else 1


def novels(setup: Setup, arguments: Namespace) -> None:
    """Train every trainer with every rate, the middle one first in case time runs out."""
    results = setup.results
    factors = sorted(map(float, arguments.rates.split(",")), key=lambda factor: abs(factor - 1))
    trainers = select_trainers(setup, arguments.only)
    earlier = results.earlier()
    done = {(r["trainer"], r["lr"], r["steps"]): r for r in earlier if r["what"] == "loss run"}

    def train(name: str, factor: float) -> None:
        rate = factor * BASE_RATES.get(name, setup.recipe.train.lr)
        task = Task(f"{name}-{rate:g}", arguments.steps, None, rate, arguments.val_tokens)
        times = (r["wall_seconds"] for r in done.values() if r["trainer"] == name)
        is_done = (name, rate, task.steps) in done
        if is_done or not setup.has_time(task.name, max(times, default=None)):
            return
        with results.record_failure(part="novels", trainer=name, lr=rate):
            results.log(f"{name} with rate {rate:g}")
            run = trainers[name](setup, task)
            done[name, rate, task.steps] = results.add(
                "loss run",
                **{"recipe": setup.recipe.name, "trainer": name, "lr": rate, **run.to_json()},
                training_seconds=round(run.training_seconds, 2),
                training_seconds_without_compiling=round(run.median_seconds * task.steps, 2),
            )

    def best_first(name: str) -> list[dict[str, Any]]:
        runs = [run for run in done.values() if run["trainer"] == name]
        evaluated = [run for run in runs if run["val_loss"] is not None]
        return sorted(evaluated, key=lambda run: float(run["val_loss"]))

    for factor in factors:
        for name in trainers:
            if name != "ours":
                train(name, factor)
    if "ours" in trainers:
        targets = {name: runs[0] for name in BASE_RATES if (runs := best_first(name))}
        for result in earlier:
            if result["what"] == "time to a loss":
                best = targets.get(result["baseline"])
                if best is not None and best["val_loss"] == result["target"]:
                    del targets[result["baseline"]]
        _reach_targets(setup, arguments, targets)
        for factor in factors:
            train("ours", factor)
    keys = ("lr", "val_loss", "training_seconds", "training_seconds_without_compiling")
    for name in trainers:
        if runs := best_first(name):
            best = {key: runs[0][key] for key in (*keys, "wall_seconds")}
            results.add("loss", trainer=name, rates_tried=len(runs), **best)


def _reach_targets(setup: Setup, arguments: Namespace, targets: dict[str, dict[str, Any]]) -> None:
    """Train ours on a growing share of the tokens until it reaches each baseline's best loss."""
    batch = setup.recipe.train.global_batch_tokens
    tokens, context = arguments.steps * batch, setup.recipe.model.block_size
    step_tokens = max(batch // STEP_SHRINK, context)
    short = setup.with_overrides(f"global_batch_tokens={step_tokens}", "warmup_steps=0")
    needed: float | None = None
    for share in TOKEN_SHARES:
        steps = max(1, tokens // share // short.recipe.train.global_batch_tokens)
        if not targets or not setup.has_time(f"ours with 1/{share} of the tokens", needed):
            return
        with setup.results.record_failure(part="novels", trainer="ours"):
            setup.results.log(f"ours with 1/{share} of the tokens")
            task = Task(f"ours-{share}", steps, None, None, arguments.val_tokens)
            run = train_ours(short, task)
            needed = 2 * run.wall_seconds
            loss = run.val_loss if run.val_loss is not None else float("inf")
            setup.results.add("short run", token_share=f"1/{share}", **run.to_json())
            for name in [name for name, best in targets.items() if loss <= best["val_loss"]]:
                best = targets.pop(name)
                training = run.median_seconds * steps
                of_training = training / best["training_seconds_without_compiling"]
                setup.results.add(
                    "time to a loss",
                    baseline=name,
                    target=best["val_loss"],
                    val_loss=loss,
                    of_its_tokens=round(1 / share, 4),
                    wall_seconds=round(run.wall_seconds, 2),
                    of_its_wall=round(run.wall_seconds / best["wall_seconds"], 3),
                    of_its_training_without_compiling=round(of_training, 3),
                )


def shakespeare(setup: Setup, arguments: Namespace) -> None:
    """Measure the wall time of the whole process until an evaluation reaches the target."""
    metrics = setup.volumes.run("shakespeare") / "metrics.jsonl"
    evaluations: dict[str, list[tuple[int, float]]] = {"ours": [], "nanogpt": []}

    def is_done(name: str, losses: list[tuple[int, float]]) -> bool:
        evaluations[name] = losses
        return any(loss <= SHAKESPEARE_TARGET for _, loss in losses)

    def ours_is_done() -> bool:
        lines = [line for line in read_metrics(metrics) if line["kind"] == "val"]
        return is_done("ours", [(line["step"], line["loss"]) for line in lines])

    def nanogpt_is_done(output: str) -> bool:
        losses = NANOGPT_EVALUATION.findall(output)
        return is_done("nanogpt", [(int(step), float(loss)) for step, loss in losses])

    run = ["--name", "shakespeare", "--device", setup.device]
    command = ["-m", "model.train", *setup.recipe_args, "sample.max_new_tokens=1", *run]
    for name in select_trainers(setup, arguments.only):
        if name not in evaluations or not setup.has_time(name):
            continue
        with setup.results.record_failure(part="shakespeare", trainer=name):
            if name == "ours":
                _, seconds = setup.run_python("shakespeare", *command, is_done=ours_is_done)
                ours_is_done()
            else:
                args = [*NANOGPT_README_GPU, f"--device={setup.device}"]
                seconds = train_as_in_readme(setup, name, args, nanogpt_is_done)
            step, loss = min(evaluations[name], key=lambda pair: pair[1])
            setup.results.add(
                "shakespeare",
                trainer=name,
                target=SHAKESPEARE_TARGET,
                reached=loss <= SHAKESPEARE_TARGET,
                step=step,
                val_loss=loss,
                wall_seconds=round(seconds, 2),
            )


def cpu(setup: Setup, arguments: Namespace) -> None:
    """Run pairs of whole processes, and evaluate the final weights on the validation set."""
    for pair in range(1, arguments.repeats + 1):
        for name in select_trainers(setup, arguments.only):
            if name not in ("ours", "nanogpt") or not setup.has_time(name):
                continue
            with setup.results.record_failure(part="cpu", trainer=name):
                setup.results.log(f"pair {pair}: {name}")
                seconds, loss = _time_ours(setup, pair) if name == "ours" else _time_nanogpt(setup)
                setup.results.add(
                    "cpu pair",
                    trainer=name,
                    pair=pair,
                    wall_seconds=round(seconds, 2),
                    val_loss=round(loss, 4),
                )


def _time_ours(setup: Setup, pair: int) -> tuple[float, float]:
    name = f"cpu-{pair}"
    run = ["--name", name, "--device", "cpu"]
    _, seconds = setup.run_python(name, "-m", "model.train", *setup.recipe_args, *run)
    output, _ = setup.run_python("evaluate", "-m", "serving.evaluate", *run, "--json")
    return seconds, float(json.loads(output.strip().splitlines()[-1])["loss"])


def _time_nanogpt(setup: Setup) -> tuple[float, float]:
    seconds = train_as_in_readme(setup, "nanogpt", NANOGPT_README_CPU)
    return seconds, evaluate_nanogpt(setup, "nanogpt", -1)
