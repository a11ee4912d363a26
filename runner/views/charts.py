"""Curves as pictures: matplotlib draws, for a PNG of `runner compare` and the page of `runner report`."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.format import duration
from runner.errors import RunnerError
from runner.format import number
from runner.project import install_line
from runner.runs.metrics import Axis, Curve, downsample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Neighbours that a drawn line is the mean of: a loss jumps from step to step, and what is wanted is its course.
SMOOTH_POINTS = 150

SHOOTS_OUT = 50  # the first fiftieth may stick out: a loss falls from 11 to 5 in no time

# Okabe and Ito's colours, which the colour-blind tell apart; not the yellow, which a white page swallows.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f")

PNG = b"\x89PNG\r\n\x1a\n"  # how each begins


@dataclass(frozen=True)
class Stroke:
    """A curve to be drawn. ``marks``: its points are measured ones, joined by a line; else it is smoothed, and
    ``spread`` shows faintly what lies under that."""

    name: str
    curve: Curve
    color: str
    marks: bool = False
    spread: bool = True


def need_matplotlib() -> None:
    """Raise RunnerError where matplotlib is not installed."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None or find_spec("jinja2") is None:
        raise RunnerError(
            f"pictures are drawn by matplotlib, which is not installed; type:\n  {install_line('report')}"
        )


def is_png(path: Path) -> bool:
    """Whether it is a picture of ours or of anybody, and so may be replaced by a newer one."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(PNG)) == PNG


def draw(axes: Any, strokes: Sequence[Stroke], axis: Axis, numbers: Any = None) -> None:
    """The strokes into matplotlib's ``axes``; ``numbers`` writes the y axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for stroke in strokes:
        points = stroke.curve.points
        shown = points if stroke.marks else downsample(points, SMOOTH_POINTS)
        if stroke.spread and not stroke.marks and len(points) > SMOOTH_POINTS:
            x = [point.at(axis) for point in shown]
            lows, highs = [point.low for point in shown], [point.high for point in shown]
            axes.fill_between(x, lows, highs, color=stroke.color, alpha=0.18, linewidth=0)
        axes.plot(
            [point.at(axis) for point in shown],
            [point.value for point in shown],
            color=stroke.color,
            label=stroke.name,
            linewidth=1.2 if stroke.marks else 1.6,
            marker="o" if stroke.marks or len(shown) == 1 else None,
            markersize=3.5,
        )
    values = [
        p for stroke in strokes for p in stroke.curve.points[len(stroke.curve) // SHOOTS_OUT :]
    ]
    if values:
        low, high = min(p.low for p in values), max(p.high for p in values)
        room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        axes.set_ylim(low - room if low < 0 or low > room else 0, high + room)
    last = max((stroke.curve.points[-1].at(axis) for stroke in strokes), default=1.0)
    axes.set_xlim(0, (last or 1.0) * 1.01)  # a last tick's label has room
    axes.xaxis.set_major_locator(
        MaxNLocator(6, steps=[1, 2, 3, 5, 6, 10] if axis == "time" else None)
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: on_axis(axis, value)))
    if numbers is not None:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: numbers(value)))
    axes.set_xlabel(AXIS_LABEL[axis])
    axes.grid(True, linewidth=0.6, alpha=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Any]]:
    """An empty picture, in inches, with plots side by side. Nothing of pyplot: it keeps figures and looks for
    a display."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    return made, list(made.subplots(1, columns, squeeze=False)[0])


def png(made: Figure) -> bytes:
    """As a PNG at 150 dots an inch."""
    out = io.BytesIO()
    made.savefig(out, format="png", dpi=150, facecolor="white")
    return out.getvalue()


def on_axis(axis: Axis, value: float) -> str:
    """A place on the x axis."""
    return duration(value) if axis == "time" else number(value)


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
