"""Curves as text, in colour: plotext draws, and what comes out fits into a rich screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from runner.format import number
from runner.runs.metrics import Axis, Curve, downsample
from runner.views.charts import AXIS_LABEL, on_axis, ticks

# Braille has two dots in a column: more points are drawn over one another.
POINTS_IN_A_COLUMN = 2

Y_TICKS = 5

SHOOTS_OUT = 50

SMALLEST = (24, 6)  # columns and lines: below that there is no plot to see

# Of the terminal's own sixteen, so that they fit a dark and a light one.
COLORS = ("cyan", "orange", "green", "magenta", "blue", "red", "gray+")


@dataclass(frozen=True)
class Line:
    """A curve of a plot; ``marks``: separate points, not joined."""

    name: str
    curve: Curve
    color: str
    marks: bool = False


def plot(lines: Sequence[Line], width: int, height: int, axis: Axis = "step") -> Text | None:
    """The curves in ``width`` columns and ``height`` lines, with a legend; None where nothing is to be drawn."""
    import plotext

    lines = [line for line in lines if line.curve]
    if not lines or width < SMALLEST[0] or height < SMALLEST[1]:
        return None
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, height - 1)
    most = 0.0
    for line in lines:
        points = downsample(line.curve.points, POINTS_IN_A_COLUMN * width)
        x, y = [point.at(axis) for point in points], [point.value for point in points]
        most = max(most, x[-1])
        draw = plotext.scatter if line.marks or len(points) == 1 else plotext.plot
        draw(x, y, marker="x" if line.marks else "braille", color=_color(line.color))
    places = ticks(most, axis)
    plotext.xlim(0, most or 1)
    plotext.xticks(places, [on_axis(axis, place) for place in places])
    plotext.xlabel(AXIS_LABEL[axis])
    low, high = _height_of([line.curve for line in lines])
    plotext.ylim(low, high)
    rows = [low + (high - low) * i / (Y_TICKS - 1) for i in range(Y_TICKS)]
    plotext.yticks(rows, [number(row) for row in rows])
    drawn = Text("     ")
    for line in lines:
        drawn.append("× " if line.marks else "━ ", style=_rich(line.color))
        drawn.append(f"{line.name}   ")
    drawn.truncate(width)
    drawn.append("\n")
    drawn.append_text(Text.from_ansi(plotext.build().rstrip("\n")))
    drawn.no_wrap = True
    return drawn


def _height_of(curves: Sequence[Curve]) -> tuple[float, float]:
    """The y axis. The first fiftieth of a long curve may stick out: a loss falls from 11 to 5 in no time, and
    what happens after that is what one looks for."""
    values = [p.value for curve in curves for p in curve.points[len(curve) // SHOOTS_OUT :]]
    low, high = min(values), max(values)
    room = (high - low) * 0.03 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _color(name: str) -> str | int:
    return 208 if name == "orange" else name


def _rich(name: str) -> str:
    return {"orange": "color(208)", "gray+": "bright_black"}.get(name, name)
