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
from job.run_record import parse_record
from runner.console import CliContext
from runner.doctor import CheckContext
from runner.errors import RunnerError
from runner.launch.execute import launch
from runner.project import find_checkout
from runner.request import LaunchArguments, as_arguments, smoke_overrides
from runner.target import open_target
from runner.targets.modal.account import is_set_up

STEPS = 10

# Losses of the same step may differ by this: float32 on other devices differs in the fifth digit after ten steps.
TOLERANCE = 1e-3

SETTINGS = as_arguments({**smoke_overrides(STEPS), "train.log_every": 1})


@dataclass(frozen=True)
class ShortRun:
    """What one target did: the loss of each step, the versions that the record names, and the device."""

    losses: Mapping[int, float]
    versions: Mapping[str, str]


def available(cli: CliContext) -> list[str]:
    """The targets that can train now; the one that costs money comes first, so that it asks first."""
    scene = CheckContext(find_checkout(cli.cwd), cli.environ)
    here = {
        "cloud": is_set_up(cli.environ),
        "host": scene.torch_here,
        "local": not scene.machine.engine.problem and scene.machine.compose is not None,
    }
    return [name for name, is_here in here.items() if is_here]


def parity(cli: CliContext, recipe: str, yes: bool, as_json: bool = False) -> int:
    """Train on each target, print the losses side by side. 1 where they differ by more than TOLERANCE.

    The runs stay, as ``parity-TIME-TARGET``. Raises RunnerError where a target fails, or is not paid for (103).
    """
    names = available(cli)
    if not names:
        raise RunnerError("no target can train here; `runner doctor` says what is missing")
    ran, runs = {}, {}
    for name in names:
        run = runs[name] = f"parity-{int(time.time())}-{name}"
        cli.info(f"{STEPS} steps of {recipe} on {name}, as run '{run}'")
        line = LaunchArguments(words=("train", recipe, *SETTINGS), name=run, yes=yes)
        with _prints_are_talk():
            status = launch(cli, name, line)
        if status != ExitStatus.DONE:
            raise RunnerError(
                f"{name} did not finish its {STEPS} steps; `runner logs {run}` shows why"
            )
        ran[name] = _short_run(cli, name, run)
    if as_json:
        step, apart = worst(ran)
        found = {name: {**asdict(one), "run": runs[name]} for name, one in ran.items()}
        cli.json(
            {"targets": found, "largest_difference": apart, "at_step": step, "tolerance": TOLERANCE}
        )
    for text in table(ran) if not as_json else []:
        cli.write(text)
    if len(ran) < 2:
        cli.info(f"{names[0]} is the only target here, so there is nothing to compare it with")
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


def _short_run(cli: CliContext, target: str, run: str) -> ShortRun:
    files = open_target(target, cli, find_checkout(cli.cwd)).files("checkpoints")
    rows = [json.loads(line) for line in files.read(f"{run}/metrics.jsonl").splitlines()]
    record = parse_record(files.read(f"{run}/run.json"))
    versions = dict(record.versions) if record else {}
    if record and record.attempts:
        versions["device"] = record.attempts[-1].device
    return ShortRun({row["step"]: row["loss"] for row in rows if row["kind"] == "train"}, versions)
