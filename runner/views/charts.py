"""Charts by plotext, as text, and by matplotlib, as PNG and SVG.

Text is for `runner watch`, `compare` and `sweep`; PNG for `compare` and `sweep`; SVG for `report`.
"""

from __future__ import annotations

import importlib.util
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from job.format import duration, number
from runner.errors import RunnerError
from runner.project import install_line
from runner.runs.metrics import Axis, Curve, downsample

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FormatNumber = Callable[[float], str]

AXIS_LABELS: dict[Axis, str] = {
    "step": "step",
    "tokens": "tokens",
    "time": "time in training steps",
}

SMOOTH_POINTS = 150  # a longer curve is drawn as the means of so many groups of neighbors

# The y axis ignores the first fiftieth: a loss falls from 11 to 5 in no time.
IGNORED_START = 50

LOG_SCALE_RATIO = 30  # values that span this factor get a logarithmic axis

# The colors of Okabe and Ito, which are safe for color blindness, without their yellow, which is
# invisible on white.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f")

# matplotlib does not know CSS variables: an SVG is drawn in these colors, which are then replaced.
INK, RULE, TRAIN, VALIDATION = "#010203", "#010204", "#010205", "#010206"

CSS_VARIABLES = {
    INK: "var(--soft)",
    RULE: "var(--rule)",
    TRAIN: "var(--train)",
    VALIDATION: "var(--val)",
}

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Series:
    """A curve to draw.

    With ``marks``, its points are shown; otherwise it is smoothed, and ``spread`` adds the faint
    band of the values of each mean.
    """

    name: str
    curve: Curve
    color: str
    marks: bool = False
    spread: bool = True


@dataclass(frozen=True)
class ScatterPoints:
    """Points with one label; ``x`` holds numbers or names."""

    label: str
    x: Sequence[Any]
    y: Sequence[float | None]
    color: str
    circled: bool = False


def check_matplotlib() -> None:
    """Raise RunnerError, with the command that installs it, if matplotlib is missing."""
    find_spec = importlib.util.find_spec
    if find_spec("matplotlib") is None or find_spec("jinja2") is None:
        raise RunnerError(
            f"pictures need matplotlib, which is not installed; run:\n  {install_line('report')}"
        )


def is_png(path: Path) -> bool:
    """Return True if the file is a PNG, so a newer one may replace it."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE


def curves_png(panels: Sequence[tuple[str, Sequence[Series]]], axis: Axis) -> bytes:
    """Return a PNG with the panels (title, series) side by side."""
    figure, all_axes = _figure(6.5 * len(panels), 5, len(panels))
    for axes, (title, series) in zip(all_axes, panels, strict=True):
        _draw(axes, series, axis)
        axes.set_title(title, loc="left")
        if series:
            axes.legend(frameon=False)
    return _png(figure)


def curves_svg(
    title: str,
    series: Sequence[Series],
    format_y: FormatNumber,
    width: float,
    height: float,
    attempt_steps: Sequence[int] = (),
) -> str:
    """Return an SVG of the curves by step, in inches, for an HTML page with the CSS variables.

    ``attempt_steps`` are the steps at which later attempts started.
    """
    import matplotlib

    style: Any = {
        "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
        "svg.hashsalt": title,  # keeps the ids of several SVGs in one page apart
        "text.parse_math": False,  # an experiment may put $ into a metric's name
        "font.size": 9,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "text.color": INK,
        "grid.color": RULE,
    }
    with matplotlib.rc_context(style):
        figure, (axes,) = _figure(width, height)
        _draw(axes, series, "step", format_y)
        for number_, step in enumerate(attempt_steps):
            label = "a new attempt starts" if number_ == 0 else None
            axes.axvline(step, color=INK, linestyle=":", linewidth=1, label=label)
        if len(series) > 1:
            axes.legend(frameon=False)
        out = io.StringIO()
        figure.savefig(
            out, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    return _for_page(out.getvalue())


def scatter_png(
    title: str, panels: Sequence[tuple[str, Sequence[ScatterPoints]]], ylabel: str
) -> bytes:
    """Return a PNG with scatter plots (x label, points) side by side."""
    figure, all_axes = _figure(4.2 * len(panels), 3.4, len(panels))
    for axes, (xlabel, groups) in zip(all_axes, panels, strict=True):
        for points in groups:
            style: dict[str, Any] = {"color": points.color, "s": 28}
            if points.circled:
                style = {"facecolors": "none", "edgecolors": points.color, "s": 110}
            axes.scatter(points.x, points.y, label=points.label, **style)
        if is_logarithmic([x for points in groups for x in points.x]):
            axes.set_xscale("log")
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(True, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
    figure.suptitle(title, fontsize=10)
    return _png(figure)


def is_numeric(values: Sequence[Any]) -> bool:
    """Return True if a numeric axis can show the values."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def is_logarithmic(values: Sequence[Any]) -> bool:
    """Return True if a linear axis would hide the small values."""
    if not values or not is_numeric(values) or min(values) <= 0:
        return False
    return bool(max(values) / min(values) >= LOG_SCALE_RATIO)


def format_x(axis: Axis, value: float) -> str:
    """Return the label of a position on the x axis."""
    return duration(value) if axis == "time" else number(value)


def ticks(largest: float, axis: Axis) -> list[float]:
    """Return about five round positions from 0 to ``largest``; times are round in minutes."""
    rough = largest / 5 or 1.0
    size = 10.0 ** math.floor(math.log10(rough))
    steps = [size, 2 * size, 2.5 * size, 5 * size, 10 * size]
    if axis == "time" and rough > 10:
        steps = [15, 30, *(60 * n for n in (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720))]
        steps += [86400.0 * n for n in (1, 2, 5, 10, 20, 50, 100)]
    step = next((step for step in steps if step >= rough), steps[-1])
    return [step * i for i in range(int(largest / step) + 1)]


def y_range(
    curves: Sequence[Curve], margin: float, spread: bool = True
) -> tuple[float, float, float] | None:
    """Return the lowest and highest value to show, and the padding; None without values.

    ``spread`` includes the values of each mean.
    """
    points = [p for curve in curves for p in curve.points[len(curve) // IGNORED_START :]]
    if not points:
        return None
    low = min(p.low if spread else p.value for p in points)
    high = max(p.high if spread else p.value for p in points)
    return low, high, (high - low) * margin or abs(high) * 0.1 or 1.0


def _draw(
    axes: Any, series: Sequence[Series], axis: Axis, format_y: FormatNumber | None = None
) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for curve in series:
        points = curve.curve.points
        shown = points if curve.marks else downsample(points, SMOOTH_POINTS)
        if curve.spread and not curve.marks and len(points) > SMOOTH_POINTS:
            x = [point.at(axis) for point in shown]
            lows, highs = [point.low for point in shown], [point.high for point in shown]
            axes.fill_between(x, lows, highs, color=curve.color, alpha=0.18, linewidth=0)
        axes.plot(
            [point.at(axis) for point in shown],
            [point.value for point in shown],
            color=curve.color,
            label=curve.name,
            linewidth=1.2 if curve.marks else 1.6,
            marker="o" if curve.marks or len(shown) == 1 else None,
            markersize=3.5,
        )
    if limits := y_range([curve.curve for curve in series], margin=0.05):
        low, high, padding = limits
        axes.set_ylim(0 if 0 <= low <= padding else low - padding, high + padding)
    last = max((curve.curve.points[-1].at(axis) for curve in series), default=1.0)
    axes.set_xlim(0, (last or 1.0) * 1.01)  # leaves space for the label of the last tick
    axes.xaxis.set_major_locator(
        MaxNLocator(6, steps=[1, 2, 3, 5, 6, 10] if axis == "time" else None)
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_x(axis, value)))
    if format_y is not None:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_y(value)))
    axes.set_xlabel(AXIS_LABELS[axis])
    axes.grid(True, linewidth=0.6, alpha=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Any]]:
    """Return an empty figure, in inches, without pyplot, which keeps figures in memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150, facecolor="white")
    return out.getvalue()


def _for_page(svg: str) -> str:
    """Return the SVG without prologue, metadata, ids and fixed size, in the colors of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1
    )
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for color, variable in CSS_VARIABLES.items():
        svg = svg.replace(color, variable)
    return svg


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

    series = [curve for curve in series if curve.curve]
    if not series or width < MIN_WIDTH or height < MIN_HEIGHT:
        return None
    _clear(width, height - 1)
    largest = 0.0
    for curve in series:
        points = downsample(curve.curve.points, POINTS_PER_COLUMN * width)
        x, y = [point.at(axis) for point in points], [point.value for point in points]
        largest = max(largest, x[-1])
        draw = plotext.scatter if curve.marks or len(points) == 1 else plotext.plot
        marker = "x" if curve.marks else "braille"
        draw(x, y, marker=marker, color=_plotext_color(curve.color))
    positions = ticks(largest, axis)
    plotext.xlim(0, largest or 1)
    plotext.xticks(positions, [format_x(axis, position) for position in positions])
    plotext.xlabel(AXIS_LABELS[axis])
    if limits := y_range([curve.curve for curve in series], margin=0.03, spread=False):
        low, high = limits[0] - limits[2], limits[1] + limits[2]
        plotext.ylim(low, high)
        rows = [low + (high - low) * i / (Y_TICKS - 1) for i in range(Y_TICKS)]
        plotext.yticks(rows, [number(row) for row in rows])
    chart = Text("     ")
    for curve in series:
        chart.append("× " if curve.marks else "━ ", style=_rich_color(curve.color))
        chart.append(f"{curve.name}   ")
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
