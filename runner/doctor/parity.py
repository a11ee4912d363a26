"""Train the same ten steps on every available target: ``runner doctor --parity RECIPE``."""

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
from runner.jobs import LaunchArguments
from runner.launch.execute import launch
from runner.launch.parse import load_recipe
from runner.project import find_checkout
from runner.request import as_arguments, smoke_overrides
from runner.target import all_targets, open_target

STEPS = 10

# Largest accepted difference of two losses of a step: float32 on another device differs in the
# fifth digit after ten steps.
TOLERANCE = 1e-3

SETTINGS = as_arguments({**smoke_overrides(STEPS), "train.log_every": 1})


@dataclass(frozen=True)
class ShortRun:
    """The result of one target: the loss of each step, and versions and device from the record."""

    losses: Mapping[int, float]
    versions: Mapping[str, str]


def available_targets(cli: CliContext) -> list[str]:
    """Return the targets that can train now; the ones that bill first, since they ask first."""
    context = CheckContext(find_checkout(cli.cwd), cli.environ)
    machine = context.machine
    can_train = {
        "host": context.has_torch,
        "local": not machine.engine.problem and machine.compose is not None,
    }
    targets = sorted(all_targets(cli, context.checkout), key=lambda target: not target.bills)
    return [t.name for t in targets if t.is_configured() and can_train.get(t.name, True)]


def parity(cli: CliContext, recipe: str, yes: bool, as_json: bool = False) -> int:
    """Train on each target and print the losses side by side.

    Returns 1 if they differ by more than TOLERANCE. The runs are kept as ``parity-TIME-TARGET``.
    Raises RunnerError if a target fails, or if the user declines to pay for it (103).
    """
    load_recipe([recipe], find_checkout(cli.cwd), cli.cwd)
    targets = available_targets(cli)
    if not targets:
        raise RunnerError(
            "no target can train on this machine; `runner doctor` says what is missing"
        )
    results, runs = {}, {}
    for target in targets:
        run = runs[target] = f"parity-{int(time.time())}-{target}"
        cli.info(f"training {STEPS} steps of {recipe} on {target} as run '{run}'")
        arguments = LaunchArguments(args=(recipe, *SETTINGS), name=run, yes=yes)
        with _stdout_to_stderr():
            status = launch(cli, target, arguments)
        if status != ExitStatus.DONE:
            raise RunnerError(f"{target} did not finish its {STEPS} steps; see `runner logs {run}`")
        results[target] = _read_result(cli, target, run)
    step, difference = largest_difference(results)
    if as_json:
        rows = {target: {**asdict(one), "run": runs[target]} for target, one in results.items()}
        cli.json(
            {
                "targets": rows,
                "largest_difference": difference,
                "at_step": step,
                "tolerance": TOLERANCE,
            }
        )
    else:
        for line in table(results):
            cli.write(line)
    if len(results) < 2:
        cli.info(f"{targets[0]} is the only available target: there is nothing to compare")
    return int(difference > TOLERANCE)


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send a job's output, such as its sample, to stderr: the comparison is the data."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


def largest_difference(results: Mapping[str, ShortRun]) -> tuple[int, float]:
    """Return the step with the largest difference, and the difference.

    A loss that is missing or not finite counts as infinitely different.
    """
    largest = (0, 0.0)
    for step in _steps(results):
        losses = [one.losses.get(step, inf) for one in results.values()]
        # max() and min() skip a NaN or not, depending on its position.
        difference = max(losses) - min(losses) if all(map(isfinite, losses)) else inf
        if difference > largest[1]:
            largest = (step, difference)
    return largest


def table(results: Mapping[str, ShortRun]) -> list[str]:
    """Return a line for each version and each step, and mark the largest difference."""
    lines = [f"{'':<10}" + "".join(f"{target:>16}" for target in results)]
    for key in sorted({key for one in results.values() for key in one.versions}):
        values = [str(one.versions.get(key, "-")) for one in results.values()]
        mark = "  differ" if len(set(values)) > 1 else ""
        lines.append(f"{key[:10]:<10}" + "".join(f"{value[:15]:>16}" for value in values) + mark)
    worst_step, difference = largest_difference(results)
    for step in _steps(results):
        values = [
            f"{one.losses[step]:.6f}" if step in one.losses else "-" for one in results.values()
        ]
        mark = f"  largest difference: {difference:.1e}" if step == worst_step else ""
        lines.append(f"{f'step {step}':<10}" + "".join(f"{value:>16}" for value in values) + mark)
    return lines


def _steps(results: Mapping[str, ShortRun]) -> list[int]:
    return sorted({step for one in results.values() for step in one.losses})


def _read_result(cli: CliContext, target: str, run: str) -> ShortRun:
    files = open_target(target, cli, find_checkout(cli.cwd)).files("checkpoints")
    rows = [json.loads(line) for line in files.read(f"{run}/metrics.jsonl").splitlines()]
    record = parse_record(files.read(f"{run}/run.json"))
    versions = dict(record.versions) if record else {}
    if record and record.attempts:
        versions["device"] = record.attempts[-1].device
    return ShortRun({row["step"]: row["loss"] for row in rows if row["kind"] == "train"}, versions)
