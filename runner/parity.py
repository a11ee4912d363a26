"""The same ten steps on every target that is here, side by side: ``runner doctor --parity RECIPE``."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import inf, isfinite

from job.exit_status import ExitStatus
from job.runs import parse_record
from runner.checkout import find_checkout
from runner.checks import Scene
from runner.cloud.account import is_set_up
from runner.command_line.arguments import CommandLine
from runner.errors import RunnerError
from runner.launch import launch
from runner.requests.short_run import as_words, shortened
from runner.targets import open_target
from runner.terminal import Environment

STEPS = 10
# Losses of the same step may differ by this: float32 on other devices differs in the fifth digit after ten steps.
TOLERANCE = 1e-3
SETTINGS = as_words({**shortened(STEPS), "train.log_every": 1})


@dataclass(frozen=True)
class ShortRun:
    """What one target did: the loss of each step, the versions that the record names, and the device."""

    losses: Mapping[int, float]
    versions: Mapping[str, str]


def available(env: Environment) -> list[str]:
    """The targets that can train now; the one that costs money comes first, so that it asks first."""
    scene = Scene(find_checkout(env.cwd), env.environ)
    here = {
        "cloud": is_set_up(env.environ),
        "host": scene.torch_here,
        "local": not scene.machine.engine.problem and scene.machine.compose is not None,
    }
    return [name for name, is_here in here.items() if is_here]


def parity(env: Environment, recipe: str, yes: bool, as_json: bool = False) -> int:
    """Train on each target, print the losses side by side. 1 where they differ by more than TOLERANCE.

    The runs stay, as ``parity-TIME-TARGET``. Raises RunnerError where a target fails, or is not paid for (103).
    """
    names = available(env)
    if not names:
        raise RunnerError("no target can train here; `runner doctor` says what is missing")
    ran, runs = {}, {}
    for name in names:
        run = runs[name] = f"parity-{int(time.time())}-{name}"
        env.say(f"{STEPS} steps of {recipe} on {name}, as run '{run}'")
        line = CommandLine(words=("train", recipe, *SETTINGS), name=run, yes=yes)
        with _prints_are_talk():
            status = launch(env, name, line)
        if status != ExitStatus.DONE:
            raise RunnerError(f"{name} did not finish its {STEPS} steps; `runner logs {run}` shows why")
        ran[name] = _short_run(env, name, run)
    if as_json:
        step, apart = worst(ran)
        found = {name: {**asdict(one), "run": runs[name]} for name, one in ran.items()}
        env.json({"targets": found, "largest_difference": apart, "at_step": step, "tolerance": TOLERANCE})
    for text in table(ran) if not as_json else []:
        env.write(text)
    if len(ran) < 2:
        env.say(f"{names[0]} is the only target here, so there is nothing to compare it with")
    return int(worst(ran)[1] > TOLERANCE)


@contextmanager
def _prints_are_talk() -> Iterator[None]:
    """What a job prints (its sample) goes to stderr: the comparison is the data here."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(ours, 1)
        os.close(ours)


def worst(ran: Mapping[str, ShortRun]) -> tuple[int, float]:
    """The step whose losses lie furthest apart, and how far; a step that one target lacks is infinitely far."""
    steps = sorted({step for one in ran.values() for step in one.losses})
    found = (0, 0.0)
    for step in steps:
        losses = [one.losses.get(step, inf) for one in ran.values()]
        # max() and min() pass over a nan or not, as it stands first or last.
        apart = max(losses) - min(losses) if all(map(isfinite, losses)) else inf
        if apart > found[1]:
            found = (step, apart)
    return found


def table(ran: Mapping[str, ShortRun]) -> list[str]:
    """Lines: versions, then a loss for each step and target; the largest difference is marked."""
    lines = [f"{'':<10}" + "".join(f"{name:>16}" for name in ran)]
    for key in sorted({key for one in ran.values() for key in one.versions}):
        values = [str(one.versions.get(key, "-")) for one in ran.values()]
        differs = "  differ" if len(set(values)) > 1 else ""
        lines.append(f"{key[:10]:<10}" + "".join(f"{value[:15]:>16}" for value in values) + differs)
    step_of_worst, apart = worst(ran)
    for step in sorted({step for one in ran.values() for step in one.losses}):
        values = [f"{one.losses[step]:.6f}" if step in one.losses else "-" for one in ran.values()]
        mark = f"  largest difference: {apart:.1e}" if step == step_of_worst else ""
        lines.append(f"{f'step {step}':<10}" + "".join(f"{value:>16}" for value in values) + mark)
    return lines


def _short_run(env: Environment, target: str, run: str) -> ShortRun:
    files = open_target(target, env, find_checkout(env.cwd)).files("checkpoints")
    rows = [json.loads(line) for line in files.read(f"{run}/metrics.jsonl").splitlines()]
    record = parse_record(files.read(f"{run}/run.json"))
    versions = dict(record.versions) if record else {}
    if record and record.attempts:
        versions["device"] = record.attempts[-1].device
    return ShortRun({row["step"]: row["loss"] for row in rows if row["kind"] == "train"}, versions)
