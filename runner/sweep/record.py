"""The record of a sweep, ``sweep.json`` in its folder: the trials, their state and cost.

The file is replaced atomically at each change, so a sweep that was killed resumes from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from job.files import exclusive_lock, write_atomically
from job.format import json_text
from job.typed_json import read_json
from runner.errors import RunnerError, usage
from runner.runs.store import SWEEP_RECORD

NO_LIMIT = math.inf  # dollars

SEED_KEYS = ("seed", "train.seed")  # of an experiment and of a recipe


class TrialStatus(StrEnum):
    """The state of a trial."""

    WAITING = "waiting"  # not started yet
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"  # retried only with --retry-failed
    UNFINISHED = "unfinished"  # has a checkpoint; the next `runner sweep` resumes it
    STOPPED = "stopped"  # by the median rule


COMPLETED = (TrialStatus.FINISHED, TrialStatus.FAILED, TrialStatus.STOPPED)


@dataclass
class Trial:
    """One run of the sweep. Money in US dollars, times in seconds since the epoch."""

    number: int
    run: str
    values: dict[str, Any]
    status: TrialStatus = TrialStatus.WAITING
    metric: float | None = None  # finite; None if the result has no such number
    reason: str = ""
    step: int = 0
    cost: float | None = None
    cap: float | None = None  # --max-cost of the running attempt, over all attempts of the run
    started: float | None = None
    ended: float | None = None
    dataset: str = ""  # fingerprint of the tokens that the run used

    @property
    def is_completed(self) -> bool:
        """Return True if the trial will not run again on its own."""
        return self.status in COMPLETED


@dataclass(frozen=True)
class TrialGroup:
    """Trials that differ only in their seed; the statistics cover the ``n`` that finished."""

    values: dict[str, Any]
    mean: float | None
    sd: float | None  # of a sample (n - 1); None below two
    n: int
    trials: int
    best_run: str | None


@dataclass
class SweepRecord:
    """The content of the file. ``definition`` holds what all trials share and must not change."""

    name: str
    target: str
    metric: str
    goal: str
    definition: dict[str, Any] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    budget: float | None = None
    smoke: str = ""  # "passed" once the smoke run succeeded
    smoke_cost: float = 0.0
    started: float = 0.0
    file_sha256: str = ""  # of an experiment's file, when the sweep started

    @property
    def spent(self) -> float:
        """Return the cost of everything that is not running now."""
        idle = (trial for trial in self.trials if trial.status != TrialStatus.RUNNING)
        return self.smoke_cost + sum(trial.cost or 0.0 for trial in idle)

    @property
    def reserved(self) -> float:
        """Return the sum of the caps of the running trials."""
        running = (trial for trial in self.trials if trial.status == TrialStatus.RUNNING)
        return sum(trial.cap or 0.0 for trial in running)

    @property
    def available_usd(self) -> float:
        """Return the dollars of the budget that are neither spent nor reserved."""
        if self.budget is None:
            return NO_LIMIT
        return max(0.0, self.budget - self.spent - self.reserved)

    def ranked(self) -> list[Trial]:
        """Return the trials, best first: finished ones, then stopped ones, then the others."""

        def rank(trial: Trial) -> tuple[int, float, int]:
            order = {TrialStatus.FINISHED: 0, TrialStatus.STOPPED: 1}.get(trial.status, 2)
            if trial.metric is None:
                order = 3
            return order, cost_of_metric(trial.metric, self.goal), trial.number

        return sorted(self.trials, key=rank)

    @property
    def groups(self) -> list[TrialGroup]:
        """Return the groups over seeds, best mean first; [] if the sweep does not vary a seed.

        Groups whose trials all finished come first: after failures or early stops, the mean would
        cover only the lucky seeds.
        """
        trials_by_values: dict[str, list[Trial]] = {}
        for trial in self.trials:
            values = repr(sorted(_without_seed(trial).items()))
            trials_by_values.setdefault(values, []).append(trial)
        if not any(map(_varies_seed, trials_by_values.values())):
            return []

        def rank(group: TrialGroup) -> tuple[int, float]:
            order = 0 if group.n == group.trials else 1 if group.n else 2
            return order, cost_of_metric(group.mean, self.goal)

        return sorted((_group(trials, self.goal) for trials in trials_by_values.values()), key=rank)

    @property
    def best(self) -> Trial | None:
        """Return the best finished trial; over seeds, that of the group with the best mean."""
        if groups := self.groups:
            return next((trial for trial in self.trials if trial.run == groups[0].best_run), None)
        first = self.ranked()[0] if self.trials else None
        if first is None or first.status != TrialStatus.FINISHED or first.metric is None:
            return None
        return first

    def count(self, *statuses: TrialStatus) -> int:
        """Return the number of trials in one of the states."""
        return sum(trial.status in statuses for trial in self.trials)

    def to_json(self) -> dict[str, Any]:
        """Return the results for --json, the trials best first."""
        best = self.best
        return {
            **asdict(self),
            "spent": round(self.spent, 4),
            "best": best.run if best else None,
            "settings": [asdict(group) for group in self.groups],
            "trials": [asdict(trial) for trial in self.ranked()],
        }

    def write(self, folder: Path) -> None:
        """Replace the file in ``folder``."""
        best = self.best.run if self.best else None  # runner/runs/find.py reads it
        text = json_text({**asdict(self), "best": best}, indent=2)
        write_atomically(folder / SWEEP_RECORD, text + "\n")


def read_sweep(folder: Path) -> SweepRecord | None:
    """Return the sweep in ``folder``, None without one. Raises RunnerError if it is damaged."""
    path = folder / SWEEP_RECORD
    try:
        record = read_json(SweepRecord, path.read_bytes())
        if not record.trials:
            raise ValueError("trials is missing")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunnerError(
            f"{path} is damaged ({error}); its runs are intact: move the file away, then run the "
            "same command to find them again"
        ) from None
    for trial in record.trials:
        if trial.metric is not None and not math.isfinite(trial.metric):
            trial.metric = None
    return record


def runs_of_sweep(name: str, folder: Path) -> set[str]:
    """Return the names of the sweep's runs, started or not. Raises RunnerError if it is damaged."""
    record = read_sweep(folder)
    return {f"{name}-smoke", *(trial.run for trial in record.trials)} if record else set()


@contextmanager
def sweep_lock(name: str, folder: Path) -> Iterator[None]:
    """Hold the sweep's lock. Raises RunnerError if another process runs the sweep."""
    with exclusive_lock(folder) as has_lock:
        if not has_lock:
            raise RunnerError(
                f"another process is running sweep '{name}'; stop that one with Ctrl-C first"
            )
        yield


def continue_sweep(old: SweepRecord, new: SweepRecord) -> SweepRecord:
    """Return ``old`` with the budget and any additional trials of ``new``.

    Raises RunnerError, exit status 2, if ``new`` differs in anything else: their results would not
    be comparable.
    """
    changes = [f"  {line}" for line in _differences(old, new)]
    if changes:
        raise usage(
            f"sweep '{old.name}' was started with different settings; its results would not be "
            "comparable:\n"
            + "\n".join(changes)
            + "\nto start a new sweep, give it a name: --name NEW-NAME"
        )
    old.trials += new.trials[len(old.trials) :]
    old.budget = new.budget
    return old


def _differences(old: SweepRecord, new: SweepRecord) -> Iterator[str]:
    before, after = dict(old.definition), dict(new.definition)
    for definition in (before, after):
        definition["trials of"] = definition.pop("of", None)
    # Records of earlier releases have no settings, or lack the keys of a later release.
    yield from _changed(before.pop("settings", {}), after.pop("settings", {}), added=False)
    yield from _changed(before, after)
    for name in ("target", "metric", "goal"):
        if getattr(old, name) != getattr(new, name):
            yield f"{name}: {getattr(old, name)} → {getattr(new, name)}"
    for mine, other in zip(old.trials, new.trials, strict=False):
        if mine.values != other.values:
            yield f"trial {mine.number}: {mine.values} → {other.values}"
    if len(new.trials) < len(old.trials):
        yield f"trials: {len(old.trials)} → {len(new.trials)}"


def _changed(
    before: Mapping[str, Any], after: Mapping[str, Any], added: bool = True
) -> Iterator[str]:
    for key in {**before, **after}:
        if before.get(key) != after.get(key) and (added or (key in before and key in after)):
            yield f"{key}: {before.get(key)!r} → {after.get(key)!r}"


def cost_of_metric(value: float | None, goal: str) -> float:
    """Return a sort key that puts the best value first, and a missing or non-finite value last."""
    if value is None or not math.isfinite(value):
        return math.inf
    return value if goal == "min" else -value


def _group(trials: list[Trial], goal: str) -> TrialGroup:
    finished = [
        (trial.metric, trial.run)
        for trial in trials
        if trial.status == TrialStatus.FINISHED and trial.metric is not None
    ]
    metrics = [metric for metric, _ in finished]
    best = min(finished, key=lambda item: cost_of_metric(item[0], goal), default=(None, None))
    return TrialGroup(
        values=_without_seed(trials[0]),
        mean=fmean(metrics) if metrics else None,
        sd=stdev(metrics) if len(metrics) > 1 and all(map(math.isfinite, metrics)) else None,
        n=len(metrics),
        trials=len(trials),
        best_run=best[1],
    )


def _without_seed(trial: Trial) -> dict[str, Any]:
    return {name: value for name, value in trial.values.items() if name not in SEED_KEYS}


def _varies_seed(trials: Iterable[Trial]) -> bool:
    seeds = {
        repr(trial.values[name]) for trial in trials for name in SEED_KEYS if name in trial.values
    }
    return len(seeds) > 1
