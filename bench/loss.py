"""How long until a loss: three comparisons, each trainer measured by one ruler.

    python -m bench loss novels gpt2_124m --text novels.txt.xz --peer nanogpt=../nanoGPT --peer hf
    python -m bench loss shakespeare --text input.txt --peer nanogpt=../nanoGPT
    python -m bench loss cpu --text input.txt --peer nanogpt=../nanoGPT [--repeats 2]

novels: 256 steps of 131,072 tokens (33.5 million), then the loss over 1,048,576 held-out tokens at the recipe's
context; each trainer with three learning rates, of which the best counts. The peers first, then ours with ever
more of the tokens, each time a whole run, until its loss is that of a peer's best, then ours with all of them.
shakespeare: until the loss over the validation characters is 1.4697, which nanoGPT's README states.
cpu: shakespeare_char_cpu against the line of nanoGPT's README for a machine with no GPU, each as a whole process.

What --out already holds of novels is not done again: a second call goes on.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from typing import Any

from bench import setup as setups
from bench.contenders import Task, contenders, nanogpt, ours
from bench.process import guarded, watch
from bench.results import Results
from bench.setup import Setup
from job.metrics import read_metrics
from job.paths import CHECKOUT

NOVELS = ("global_batch_tokens=131072", "warmup_steps=25", "decay_steps=null", "val_fraction=0.2")
TARGET = 1.4697
# Ours until a peer's loss: steps of an eighth of the tokens and no warm-up, since few tokens teach more in small steps
# (docs/log.md); parts of all the tokens.
SHORTER = 8
PARTS = (32, 16, 8, 4, 2)
# Where nothing else is known of a contender's rate. nanochat's is a factor on all of its own.
BASE_RATES = {"nanogpt": 1e-3, "hf": 1e-3, "nanochat": 1.0}


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this bench."""
    setups.add_arguments(parser)
    parser.add_argument("--steps", type=int, default=256, help="novels: steps (256)")
    parser.add_argument(
        "--val-tokens", type=int, default=1 << 20, help="novels: held-out tokens (1,048,576)"
    )
    parser.add_argument(
        "--rates", default="0.5,1,2", help="novels: factors on each trainer's rate (0.5,1,2)"
    )
    parser.add_argument("--repeats", type=int, default=1, help="cpu: pairs (1)")


def main(arguments: Namespace, results: Results) -> int:
    """The entry: 0 where ours was measured."""
    what = {"novels": novels, "shakespeare": shakespeare, "cpu": cpu}
    named = [word for word in arguments.words if word in what] or ["cpu"]
    arguments.words = [word for word in arguments.words if word not in what]
    if named[0] != "novels" and not [word for word in arguments.words if "=" not in word]:
        arguments.words.insert(
            0, "shakespeare_char_cpu" if named[0] == "cpu" else "shakespeare_char"
        )
    if named[0] == "cpu":
        arguments.device = "cpu"
    with setups.setup(arguments, results, *(NOVELS if named[0] == "novels" else ())) as setup:
        what[named[0]](setup, arguments)
    return 0 if any(result.get("contender") == "ours" for result in results.all) else 1


def novels(setup: Setup, arguments: Namespace) -> None:
    """Every contender with every rate, the middle one first, so that a budget that ends early has it; then how soon
    ours is where a peer's best run ended."""
    results = setup.results
    factors = sorted(map(float, arguments.rates.split(",")), key=lambda factor: abs(factor - 1))
    running = contenders(setup, arguments.only)
    before = _before(results)
    done = {(r["contender"], r["lr"], r["steps"]): r for r in before if r["what"] == "loss run"}

    def train(name: str, factor: float) -> None:
        rate = factor * BASE_RATES.get(name, setup.recipe.train.lr)
        task = Task(f"{name}-{rate:g}", arguments.steps, None, rate, arguments.val_tokens)
        needs = max(
            (r["wall_seconds"] for r in done.values() if r["contender"] == name), default=None
        )
        if (name, rate, task.steps) in done or not setup.has_time(task.name, needs):
            return
        with guarded(results, part="novels", contender=name, lr=rate):
            results.say(f"{name} with rate {rate:g}")
            found = running[name].train(setup, task)
            done[name, rate, task.steps] = results.add(
                "loss run",
                **{"recipe": setup.recipe.name, "contender": name, "lr": rate, **found.facts()},
                training_seconds=round(found.training_seconds, 2),
                training_seconds_without_compiling=round(found.median * task.steps, 2),
            )

    def runs_of(name: str) -> list[dict[str, Any]]:
        """The best first."""
        runs = [
            run for run in done.values() if run["contender"] == name and run["val_loss"] is not None
        ]
        return sorted(runs, key=lambda run: float(run["val_loss"]))

    for factor in factors:
        for name in running:
            if name != "ours":
                train(name, factor)
    if "ours" in running:
        ends = {name: runs[0] for name in BASE_RATES if (runs := runs_of(name))}
        there = [(r["peer"], r["target"]) for r in before if r["what"] == "time to a loss"]
        _until_there(
            setup,
            arguments,
            {n: end for n, end in ends.items() if (n, end["val_loss"]) not in there},
        )
        for factor in factors:
            train("ours", factor)
    for name in running:
        if runs := runs_of(name):
            keys = (
                "lr",
                "val_loss",
                "training_seconds",
                "training_seconds_without_compiling",
                "wall_seconds",
            )
            results.add(
                "loss", contender=name, rates_tried=len(runs), **{key: runs[0][key] for key in keys}
            )


def _until_there(setup: Setup, arguments: Namespace, ends: dict[str, dict[str, Any]]) -> None:
    """Ours with a growing part of the tokens, each time a whole run, until its loss is that of each peer's best run."""
    batch = setup.recipe.train.global_batch_tokens
    tokens, least = arguments.steps * batch, setup.recipe.model.block_size
    short = setup.with_overrides(
        f"global_batch_tokens={max(batch // SHORTER, least)}", "warmup_steps=0"
    )
    needs: float | None = None
    for part in PARTS:
        steps = max(1, tokens // part // short.recipe.train.global_batch_tokens)
        if not ends or not setup.has_time(f"ours with a {part}th of the tokens", needs):
            return
        with guarded(setup.results, part="novels", contender="ours"):
            setup.results.say(f"ours with a {part}th of the tokens")
            task = Task(f"ours-{part}", steps, None, None, arguments.val_tokens)
            found = ours.train(short, task)
            needs = 2 * found.wall_seconds
            loss = found.val_loss if found.val_loss is not None else float("inf")
            setup.results.add("short run", part=part, **found.facts())
            for name in [name for name, best in ends.items() if loss <= best["val_loss"]]:
                best = ends.pop(name)
                training = found.median * steps
                setup.results.add(
                    "time to a loss",
                    peer=name,
                    target=best["val_loss"],
                    val_loss=loss,
                    of_its_tokens=round(1 / part, 4),
                    wall_seconds=round(found.wall_seconds, 2),
                    of_its_wall=round(found.wall_seconds / best["wall_seconds"], 3),
                    of_its_training_without_compiling=round(
                        training / best["training_seconds_without_compiling"], 3
                    ),
                )


def shakespeare(setup: Setup, arguments: Namespace) -> None:
    """Wall seconds of the whole process until an evaluation at or under the target."""
    metrics = setup.volumes.run("shakespeare") / "metrics.jsonl"
    seen: dict[str, list[tuple[int, float]]] = {"ours": [], "nanogpt": []}

    def ours_reached() -> bool:
        seen["ours"] = [(m["step"], m["loss"]) for m in read_metrics(metrics) if m["kind"] == "val"]
        return any(loss <= TARGET for _, loss in seen["ours"])

    def nanogpt_reached(text: str) -> bool:
        seen["nanogpt"] = [
            (int(step), float(loss)) for step, loss in nanogpt.EVALUATION.findall(text)
        ]
        return any(loss <= TARGET for _, loss in seen["nanogpt"])

    command = [sys.executable, "-m", "model.train", *setup.words, "sample.max_new_tokens=1"]
    command += ["--name", "shakespeare", "--device", setup.device]
    for name in contenders(setup, arguments.only):
        if name not in seen or not setup.has_time(name):
            continue
        with guarded(setup.results, part="shakespeare", contender=name):
            if name == "ours":
                log = setup.work / "shakespeare.log"
                seconds = watch(
                    command, CHECKOUT, setup.environ, log, setup.results.left(), ours_reached
                )
                ours_reached()
            else:
                words = [*nanogpt.README_GPU, f"--device={setup.device}"]
                seconds = nanogpt.readme(setup, name, words, nanogpt_reached)
            step, loss = min(seen[name], key=lambda pair: pair[1])
            reached = loss <= TARGET
            setup.results.add(
                "shakespeare", contender=name, target=TARGET, reached=reached, step=step, val_loss=loss,
                wall_seconds=round(seconds, 2),
            )  # fmt: skip


def cpu(setup: Setup, arguments: Namespace) -> None:
    """Pairs of whole processes, then the loss of their last weights over the whole validation set."""
    for pair in range(arguments.repeats):
        for name in contenders(setup, arguments.only):
            if name not in ("ours", "nanogpt") or not setup.has_time(name):
                continue
            with guarded(setup.results, part="cpu", contender=name):
                setup.results.say(f"pair {pair + 1}: {name}")
                started = time.perf_counter()
                if name == "ours":
                    run = f"cpu-{pair}"
                    setup.python(
                        run, "-m", "model.train", *setup.words, "--name", run, "--device", "cpu"
                    )
                    seconds = time.perf_counter() - started
                    out, _ = setup.python(
                        "ruler", "-m", "model.evaluate", "--name", run, "--json", "--device", "cpu"
                    )
                    loss = json.loads(out.strip().splitlines()[-1])["loss"]
                else:
                    seconds = nanogpt.readme(setup, name, nanogpt.README_CPU)
                    loss = nanogpt.ruler(setup, name, -1)
                setup.results.add(
                    "cpu pair",
                    contender=name,
                    pair=pair + 1,
                    wall_seconds=round(seconds, 2),
                    val_loss=round(loss, 4),
                )


def _before(results: Results) -> list[dict[str, Any]]:
    """What earlier calls wrote into --out."""
    if results.path is None or not results.path.exists():
        return []
    return [json.loads(line) for line in results.path.read_text().splitlines()]
