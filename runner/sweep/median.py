"""The median rule: a trial that is worse than half of the others were at the same step has little hope.

After Google Vizier (Golovin et al., 2017, section 3.2.1): the trial's best value up to step s is set against the
median of the others' running averages up to s. Pure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median

Curve = Sequence[tuple[int, float]]  # (step, value), steps rising
OTHERS = 3  # fewer say too little


def curve(lines: Iterable[str | bytes], metric: str) -> list[tuple[int, float]]:
    """The values of ``metric`` in the lines of a metrics.jsonl: ``val_loss`` is the loss of its lines ``val``."""
    found = []
    for line in lines:
        try:
            row = json.loads(line)
            step, kind = int(row["step"]), row["kind"]
        except (ValueError, LookupError, TypeError):
            continue
        for key, value in row.items():
            names = (key, f"{kind}_{key}", f"{kind}/{key}", f"best_{kind}_{key}")
            if metric in names and key not in ("step", "kind") and isinstance(value, int | float):
                found.append((step, float(value)))
    return found


def hopeless(trial: Curve, others: Mapping[str, Curve], goal: str, grace_steps: int) -> str:
    """Why to stop the trial with this curve; '' where it may go on. ``others``: run → curve."""
    if not trial or trial[-1][0] < grace_steps:
        return ""
    step = trial[-1][0]
    sign = 1.0 if goal == "min" else -1.0
    averages = []
    for values in others.values():
        if values and values[-1][0] >= step:  # one that has not come so far says nothing of this step
            averages.append(fmean(sign * value for at, value in values if at <= step or at == values[0][0]))
    if len(averages) < OTHERS:
        return ""
    best = min((sign * value for _, value in trial if not math.isnan(value)), default=math.inf)
    limit = median(averages)
    if best <= limit:
        return ""
    return f"median rule at step {step}: {sign * best:.4g} at best, half of the others {sign * limit:.4g}"
