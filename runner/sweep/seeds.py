"""A sweep over seeds too: its settings without the seed, each with the mean and the standard deviation. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.sweep.record import Trial

# Of a recipe both are the training's; of an experiment the first is its parameter.
SEEDS = ("seed", "train.seed")


@dataclass(frozen=True)
class Setting:
    """What was tried with several seeds. ``n`` trials of ``trials`` finished, and the figures are theirs; ``sd`` is the
    sample's (n - 1), None below two."""

    values: dict[str, Any]
    mean: float | None
    sd: float | None
    n: int
    trials: int
    best_run: str | None


def settings(trials: Sequence[Trial], goal: str) -> list[Setting]:
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

    def place(setting: Setting) -> tuple[int, float]:
        group = 0 if setting.n == setting.trials else 1 if setting.n else 2
        return group, badness(setting.mean, goal)

    return sorted((_setting(group, goal) for group in groups.values()), key=place)


def badness(value: float | None, goal: str) -> float:
    """What to sort by so that the best comes first; what is no number comes last."""
    if value is None or math.isnan(value):
        return math.inf
    return value if goal == "min" else -value


def _setting(group: list[Trial], goal: str) -> Setting:
    finished = [(t.metric, t.run) for t in group if t.status == "finished" and t.metric is not None]
    metrics = [metric for metric, _ in finished]
    best = min(finished, key=lambda item: badness(item[0], goal), default=(None, None))
    return Setting(
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
        len({repr(trial.values.get(name)) for trial in group for name in SEEDS if name in trial.values}) > 1
    )
