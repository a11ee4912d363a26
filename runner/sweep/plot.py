"""The metric against what was varied: a panel for each key as PNG, the first of them in the terminal.

matplotlib and plotext are asked for here alone; a sweep on a machine without them has its table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from job.files import write_atomically
from runner.history.figures import figure, png
from runner.sweep.record import SweepRecord, Trial

WIDTH, HEIGHT = 70, 16
DECADES = 30.0  # largest value over smallest from which on an axis is logarithmic
PANELS = 6


def points(record: SweepRecord, key: str) -> list[tuple[Any, float, Trial]]:
    """(value, metric, trial) of the trials that have both."""
    return [
        (trial.values[key], trial.metric, trial)
        for trial in record.trials
        if trial.metric is not None and key in trial.values and trial.values[key] is not None
    ]


def is_number(values: list[Any]) -> bool:
    """Whether an axis of numbers can hold them."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def is_logarithmic(values: list[Any]) -> bool:
    """Whether they span so much that a linear axis would hide the small ones."""
    return is_number(values) and min(values) > 0 and max(values) / min(values) >= DECADES


def varied(record: SweepRecord) -> list[str]:
    """The keys with more than one value."""
    keys = dict.fromkeys(key for trial in record.trials for key in trial.values)
    return [key for key in keys if len({str(t.values.get(key)) for t in record.trials}) > 1]


def terminal_plot(record: SweepRecord) -> str:
    """The metric over the first numeric key; '' where there is nothing to draw, or no plotext."""
    try:
        import plotext
    except ImportError:
        return ""
    for key in varied(record):
        found = points(record, key)
        values = [value for value, _, _ in found]
        if len(found) < 2 or not is_number(values):
            continue
        plotext.clear_figure()
        plotext.theme("clear")
        plotext.plot_size(WIDTH, HEIGHT)
        if is_logarithmic(values):
            plotext.xscale("log")
        plotext.scatter(values, [metric for _, metric, _ in found], marker="x")
        plotext.xlabel(key)
        plotext.title(record.metric)
        return str(plotext.uncolorize(plotext.build())).rstrip()
    return ""


def write_png(record: SweepRecord, path: Path) -> Path | None:
    """The picture at ``path``; None where there is nothing to draw, or no matplotlib."""
    keys = [key for key in varied(record) if len(points(record, key)) > 1][:PANELS]
    if not keys:
        return None
    try:
        made, panels = figure(4.2 * len(keys), 3.4, len(keys))
    except ImportError:
        return None
    best = record.best
    for axes, key in zip(panels, keys, strict=True):
        _panel(axes, record, key, best)
    made.suptitle(f"{record.name}: {len(record.trials)} trials", fontsize=10)
    write_atomically(path, png(made))
    return path


def _panel(axes: Any, record: SweepRecord, key: str, best: Trial | None) -> None:
    found = points(record, key)
    values = [value for value, _, _ in found]
    numeric = is_number(values)
    for status, colour, word in (
        ("finished", "#2563a8", "finished"),
        ("stopped", "#c2703d", "stopped early"),
    ):
        rows = [
            (value if numeric else str(value), metric) for value, metric, t in found if t.status == status
        ]
        if rows:
            axes.scatter([x for x, _ in rows], [y for _, y in rows], color=colour, s=28, label=word)
    if best is not None and key in best.values:
        axes.scatter(
            [best.values[key] if numeric else str(best.values[key])],
            [best.metric],
            s=110,
            facecolors="none",
            edgecolors="#111111",
            label="best",
        )
    if is_logarithmic(values):
        axes.set_xscale("log")
    axes.set_xlabel(key)
    axes.set_ylabel(record.metric)
    axes.grid(True, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
