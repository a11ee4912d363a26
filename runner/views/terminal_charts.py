"""Charts as text, drawn by plotext: for `runner watch`, `runner compare` and `runner sweep`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from runner.format import number
from runner.runs.metrics import Axis, downsample
from runner.views.charts import AXIS_LABELS, Series, format_x, is_logarithmic, ticks, y_range

POINTS_PER_COLUMN = 2  # Braille has two dots in a column

Y_TICKS = 5

MIN_WIDTH, MIN_HEIGHT = 24, 6  # columns and lines; below, a plot is unreadable

SCATTER_WIDTH, SCATTER_HEIGHT = 70, 16

# Of the terminal's own sixteen colors, which suit dark and light backgrounds.
COLORS = ("cyan", "orange", "green", "magenta", "blue", "red", "gray+")


def plot_series(
    series: Sequence[Series], width: int, height: int, axis: Axis = "step"
) -> Text | None:
    """Return the curves in ``width`` columns and ``height`` lines, with a legend.

    None if there is nothing to draw or no space.
    """
    import plotext

    series = [each for each in series if each.curve]
    if not series or width < MIN_WIDTH or height < MIN_HEIGHT:
        return None
    _clear(width, height - 1)
    largest = 0.0
    for each in series:
        points = downsample(each.curve.points, POINTS_PER_COLUMN * width)
        x, y = [point.at(axis) for point in points], [point.value for point in points]
        largest = max(largest, x[-1])
        draw = plotext.scatter if each.marks or len(points) == 1 else plotext.plot
        marker = "x" if each.marks else "braille"
        draw(x, y, marker=marker, color=_plotext_color(each.color))
    positions = ticks(largest, axis)
    plotext.xlim(0, largest or 1)
    plotext.xticks(positions, [format_x(axis, position) for position in positions])
    plotext.xlabel(AXIS_LABELS[axis])
    if limits := y_range([each.curve for each in series], margin=0.03, spread=False):
        low, high = limits[0] - limits[2], limits[1] + limits[2]
        plotext.ylim(low, high)
        rows = [low + (high - low) * i / (Y_TICKS - 1) for i in range(Y_TICKS)]
        plotext.yticks(rows, [number(row) for row in rows])
    chart = Text("     ")
    for each in series:
        chart.append("× " if each.marks else "━ ", style=_rich_color(each.color))
        chart.append(f"{each.name}   ")
    chart.truncate(width)
    chart.append("\n")
    chart.append_text(Text.from_ansi(plotext.build().rstrip("\n")))
    chart.no_wrap = True
    return chart


def plot_scatter(x: Sequence[float], y: Sequence[float], xlabel: str, title: str) -> str:
    """Return the points as plain text."""
    import plotext

    _clear(SCATTER_WIDTH, SCATTER_HEIGHT)
    if is_logarithmic(x):
        plotext.xscale("log")
    plotext.scatter(x, y, marker="x")
    plotext.xlabel(xlabel)
    plotext.title(title)
    return str(plotext.uncolorize(plotext.build())).rstrip()


def _clear(width: int, height: int) -> None:
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, height)


def _plotext_color(name: str) -> str | int:
    return 208 if name == "orange" else name


def _rich_color(name: str) -> str:
    return {"orange": "color(208)", "gray+": "bright_black"}.get(name, name)
