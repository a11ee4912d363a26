"""How numbers are written wherever a run is shown."""

from __future__ import annotations

import math

from job.quantities import duration
from runner.history.curve import Axis


def short(number: float) -> str:
    """950, 12.5k, 3.2M, 1.1B: for an axis, and for tokens."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def dollars(amount: float) -> str:
    """``$25.00``; below a cent as many digits as say something: ``$0.0001``."""
    if not 0 < amount < 0.01:
        return f"${amount:.2f}"
    return f"${amount:.{1 - math.floor(math.log10(amount))}f}".rstrip("0")


def on_axis(axis: Axis, value: float) -> str:
    """A place on the x axis."""
    return duration(value) if axis == "time" else short(value)


def ticks(most: float, axis: Axis, count: int = 5) -> list[float]:
    """Round places on an axis from 0 to ``most``: about ``count`` of them, of time in minutes, hours or days."""
    rough = most / count or 1.0
    size = 10.0 ** math.floor(math.log10(rough))
    steps = [size, 2 * size, 2.5 * size, 5 * size, 10 * size]
    if axis == "time" and rough > 10:
        steps = [15, 30, *(60 * n for n in (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720))]
        steps += [86400.0 * n for n in (1, 2, 5, 10, 20, 50, 100)]
    step = next((step for step in steps if step >= rough), steps[-1])
    return [step * i for i in range(int(most / step) + 1)]


AXIS_LABEL: dict[Axis, str] = {"step": "step", "tokens": "tokens", "time": "time in training steps"}
