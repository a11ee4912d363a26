"""``sweep.json`` in the sweep's own folder: its trials, how each stands, what it cost. Written whole, atomically.

What is there when everything was killed is enough to go on: a trial that is finished is never run again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from job.files import write_atomically
from runner.errors import RunnerError, usage

NAME = "sweep.json"

# waiting: not begun, or not for lack of money. unfinished: has a checkpoint, goes on when the line is typed again.
# stopped: the median rule has ended it. failed: not tried again unless that is asked for.
Status = Literal["waiting", "running", "finished", "failed", "unfinished", "stopped"]

OVER = ("finished", "failed", "stopped")


@dataclass
class Trial:
    """One run of the sweep. Money in US dollars, times in seconds."""

    number: int
    run: str
    values: dict[str, Any]
    status: Status = "waiting"
    metric: float | None = None
    reason: str = ""
    step: int = 0
    cost: float | None = None
    cap: float | None = None  # --max-cost of the attempt that runs, over all attempts of the run
    started: float | None = None
    ended: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether it is done with."""
        return self.status in OVER


@dataclass
class SweepRecord:
    """What the file holds. ``definition`` is what makes it this sweep and no other."""

    name: str
    target: str
    metric: str
    goal: str
    definition: dict[str, Any] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    budget: float | None = None
    smoke: str = ""  # passed, or why it was left out
    smoke_cost: float = 0.0
    started: float = 0.0

    @property
    def spent(self) -> float:
        """By all that does not run now."""
        return self.smoke_cost + sum(t.cost or 0.0 for t in self.trials if t.status != "running")

    @property
    def reserved(self) -> float:
        """For what runs now."""
        return sum(t.cap or 0.0 for t in self.trials if t.status == "running")

    def ranked(self) -> list[Trial]:
        """Best first: the finished ones, then those stopped early, then the rest in order."""

        def place(trial: Trial) -> tuple[int, float, int]:
            group = (
                {"finished": 0, "stopped": 1}.get(trial.status, 2)
                if trial.metric is not None
                else 3
            )
            return group, badness(trial.metric, self.goal), trial.number

        return sorted(self.trials, key=place)

    @property
    def settings(self) -> list[TrialGroup]:
        """Where seeds are varied: the settings without them, by their means, best first; else []."""
        return trial_groups(self.trials, self.goal)

    @property
    def best(self) -> Trial | None:
        """The best of the finished ones; where seeds are varied, of the setting with the best mean."""
        if found := self.settings:
            return next((trial for trial in self.trials if trial.run == found[0].best_run), None)
        first = self.ranked()[0] if self.trials else None
        return (
            first
            if first is not None and first.status == "finished" and first.metric is not None
            else None
        )

    def count(self, *statuses: Status) -> int:
        """How many trials stand so."""
        return sum(trial.status in statuses for trial in self.trials)

    def facts(self) -> dict[str, Any]:
        """For --json, the trials best first."""
        best = self.best
        return {
            **asdict(self),
            "spent": round(self.spent, 4),
            "best": best.run if best else None,
            "settings": [asdict(setting) for setting in self.settings],
            "trials": [asdict(trial) for trial in self.ranked()],
        }

    def write(self, folder: Path) -> None:
        """Replace the file."""
        best = self.best.run if self.best else None  # runner/runs/find.py reads it
        write_atomically(folder / NAME, json.dumps({**asdict(self), "best": best}, indent=2) + "\n")


def read_sweep(folder: Path) -> SweepRecord | None:
    """The sweep in ``folder``; None where there is none. Raises RunnerError for a file that can't be read."""
    path = folder / NAME
    try:
        tree = json.loads(path.read_text())
        rows = [Trial(**_known(Trial, row)) for row in tree.pop("trials")]
        return SweepRecord(**{**_known(SweepRecord, tree), "trials": rows})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise RunnerError(
            f"{path} can't be read ({error}); its runs are whole: move the file away, and the same line "
            "finds them again"
        ) from None


def _known(kind: type, tree: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    return {key: value for key, value in tree.items() if key in names}


def continue_sweep(old: SweepRecord, new: SweepRecord) -> SweepRecord:
    """``old`` with what may change (budget, more trials at the end). Raises RunnerError, exit code 2, for another
    sweep under its name."""
    lines = [
        f"  {key}: {old.definition.get(key)!r} → {new.definition.get(key)!r}"
        for key in {**old.definition, **new.definition}
        if old.definition.get(key) != new.definition.get(key)
    ]
    for attribute in ("target", "metric", "goal"):
        before, after = getattr(old, attribute), getattr(new, attribute)
        if before != after:
            lines.append(f"  {attribute}: {before} → {after}")
    for before, after in zip(old.trials, new.trials, strict=False):
        if before.values != after.values:
            lines.append(f"  trial {before.number}: {before.values} → {after.values}")
    if len(new.trials) < len(old.trials):
        lines.append(f"  trials: {len(old.trials)} → {len(new.trials)}")
    if lines:
        raise usage(
            f"sweep '{old.name}' was begun as another one, and its results would not compare:\n"
            + "\n".join(lines)
            + "\nstart this one under another name: --name NEW-NAME"
        )
    old.trials += new.trials[len(old.trials) :]
    old.budget = new.budget
    return old


def now() -> float:
    """Seconds since the epoch."""
    return time.time()


# Of a recipe both are the training's; of an experiment the first is its parameter.
SEEDS = ("seed", "train.seed")


@dataclass(frozen=True)
class TrialGroup:
    """What was tried with several seeds. ``n`` trials of ``trials`` finished, and the figures are theirs; ``sd`` is the
    sample's (n - 1), None below two."""

    values: dict[str, Any]
    mean: float | None
    sd: float | None
    n: int
    trials: int
    best_run: str | None


def trial_groups(trials: Sequence[Trial], goal: str) -> list[TrialGroup]:
    """The settings, lowest mean first (or highest, by ``goal``); [] where no two trials differ in their seed alone.

    Those whose trials have all finished come first: a mean over the seeds that were left by the median rule, or by
    failures, would be that of the lucky ones.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Trial]] = {}
    for trial in trials:
        key = tuple(sorted((name, repr(value)) for name, value in _without_seed(trial).items()))
        groups.setdefault(key, []).append(trial)
    if not any(len(group) > 1 and _has_seeds(group) for group in groups.values()):
        return []

    def place(setting: TrialGroup) -> tuple[int, float]:
        group = 0 if setting.n == setting.trials else 1 if setting.n else 2
        return group, badness(setting.mean, goal)

    return sorted((_setting(group, goal) for group in groups.values()), key=place)


def badness(value: float | None, goal: str) -> float:
    """What to sort by so that the best comes first; what is no number comes last."""
    if value is None or math.isnan(value):
        return math.inf
    return value if goal == "min" else -value


def _setting(group: list[Trial], goal: str) -> TrialGroup:
    finished = [(t.metric, t.run) for t in group if t.status == "finished" and t.metric is not None]
    metrics = [metric for metric, _ in finished]
    best = min(finished, key=lambda item: badness(item[0], goal), default=(None, None))
    return TrialGroup(
        values=_without_seed(group[0]),
        mean=fmean(metrics) if metrics else None,
        sd=stdev(metrics) if len(metrics) > 1 and all(map(math.isfinite, metrics)) else None,
        n=len(metrics),
        trials=len(group),
        best_run=best[1],
    )


def _without_seed(trial: Trial) -> dict[str, Any]:
    return {name: value for name, value in trial.values.items() if name not in SEEDS}


def _has_seeds(group: list[Trial]) -> bool:
    return (
        len(
            {
                repr(trial.values.get(name))
                for trial in group
                for name in SEEDS
                if name in trial.values
            }
        )
        > 1
    )
