"""The comparison of `runner compare`: differences of the recipes, results, and one plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from job.format import one_line, setting
from runner.runs.history import History, format_results, results
from runner.runs.metrics import Axis
from runner.views.charts import COLORS, PALETTE, Series, curves_png, plot_series

MAX_COLUMNS = 4  # more runs have a row each, not a column

MIN_EVALUATIONS = 6  # fewer do not make a curve of validation losses

MISSING = "–"

IGNORED_KEYS = {"name"}  # the recipe's name is that of the run or file

# Results with a best value: row of the table → key of the results, and the better of two values.
BETTER: dict[str, tuple[str, Callable[..., Any]]] = {
    "training loss": ("train_loss", min),
    "validation loss": ("val_loss", min),
    "best validation": ("best_val_loss", min),
    "tokens/s": ("tokens_per_second", max),
    "MFU": ("mfu", max),
}

Row = tuple[str, list[str]]  # a name, and one cell for each run


def differences(histories: Sequence[History]) -> dict[str, list[Any]]:
    """Return the settings that differ: key → one value for each run.

    The value is None if a recipe, such as one of an earlier release, lacks the key.
    """
    keys = {key: None for history in histories for key in history.recipe}
    values = {key: [history.recipe.get(key) for history in histories] for key in keys}
    values["text"] = [_dataset_source(history) for history in histories]
    return {
        key: row
        for key, row in values.items()
        if key not in IGNORED_KEYS and not all(_is_same(value, row[0]) for value in row)
    }


def _is_same(value: Any, other: Any) -> bool:
    """Return True for equal values, and for two NaN, which never compare equal."""
    return bool(value == other or (value != value and other != other))


def _dataset_source(history: History) -> str | None:
    """Return the text of the dataset: two datasets of one name may have different texts."""
    data = history.record.dataset if history.record else {}
    return f"{data['source']} ({data['fingerprint']})" if data else None


def rows(histories: Sequence[History]) -> tuple[list[Row], list[Row]]:
    """Return the rows of the differences, and those of the results."""
    differing = [
        (key, [one_line(setting(value)) for value in values])
        for key, values in differences(histories).items()
    ]
    columns = [format_results(results(history)) for history in histories]
    names = {name: None for column in columns for name in column}
    order = sorted(
        names,
        key=lambda name: max(list(column).index(name) for column in columns if name in column),
    )
    return differing, [(name, [column.get(name, MISSING) for column in columns]) for name in order]


def table(histories: Sequence[History]) -> Table:
    """Return a table with one column for each run; for many runs, one row for each."""
    differing, outcome = rows(histories)
    names = [one_line(history.state.run) for history in histories]
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    if len(histories) > MAX_COLUMNS:
        shown.add_column("run")
        for name, _ in (*differing, *outcome):
            shown.add_column(one_line(name.rpartition(".")[2]), overflow="fold")
        for i, run in enumerate(names):
            shown.add_row(run, *(cells[i] for _, cells in (*differing, *outcome)))
        return shown
    shown.add_column("")
    for run in names:
        shown.add_column(run, overflow="fold")
    for name, cells in differing:
        shown.add_row(Text(one_line(name), style="yellow"), *cells)
    if not differing:
        shown.add_row(Text("recipe", style="yellow"), *(["identical"] * len(names)))
    shown.add_section()
    values = [results(history) for history in histories]
    for name, cells in outcome:
        best = best_of(name, values)
        styled = [
            Text(cell, style="bold green" if i == best else "") for i, cell in enumerate(cells)
        ]
        shown.add_row(Text(name, style="dim"), *styled)
    return shown


def best_of(name: str, values: Sequence[dict[str, Any]]) -> int | None:
    """Return the index of the best run in a row of the table; None if no run is better.

    A NaN of a diverged run is never the best.
    """
    key, better = BETTER.get(name, ("", min))
    numbers = {
        i: run[key]
        for i, run in enumerate(values)
        if run.get(key) is not None and math.isfinite(run[key])
    }
    return better(numbers, key=lambda i: numbers[i]) if len(set(numbers.values())) > 1 else None


def to_json(histories: Sequence[History]) -> dict[str, Any]:
    """Return the comparison for --json."""
    runs = [history.state.run for history in histories]
    return {
        "differences": {
            key: dict(zip(runs, values, strict=True))
            for key, values in differences(histories).items()
        },
        "runs": [
            {"run": history.state.run, **results(history), "recipe": history.recipe}
            for history in histories
        ],
    }


def terminal_plot(histories: Sequence[History], axis: Axis, width: int, height: int) -> Text | None:
    """Return the plot of validation losses if all runs have enough, else of training losses."""
    key, name = _plotted_metric(histories)
    series = [
        Series(one_line(history.state.run), curve, COLORS[i % len(COLORS)])
        for i, history in enumerate(histories)
        if (curve := history.metrics.curves.get(key))
    ]
    chart = plot_series(series, width, height, axis)
    return Text.assemble(f"{one_line(name)}\n", chart) if chart is not None else None


def png(histories: Sequence[History], axis: Axis) -> bytes:
    """Return a PNG with the training losses on the left, the validation losses on the right."""
    panels = []
    for key, title in (("loss", "training loss"), ("val_loss", "validation loss")):
        series = [
            Series(
                history.state.run,
                history.metrics.curves[key],
                PALETTE[i % len(PALETTE)],
                marks=key == "val_loss",
                spread=False,
            )
            for i, history in enumerate(histories)
            if history.metrics.curves[key]
        ]
        panels.append((title, series))
    return curves_png(panels, axis)


def _plotted_metric(histories: Sequence[History]) -> tuple[str, str]:
    """Return the key and the title of the metric to plot."""
    if all(len(h.metrics.curves["val_loss"]) >= MIN_EVALUATIONS for h in histories):
        return "val_loss", "validation loss"
    if any(history.metrics.curves["loss"] for history in histories):
        return "loss", "training loss"
    shared = [
        key
        for key in histories[0].metrics.extra_curves
        if all(key in h.metrics.curves for h in histories)
    ]
    return (shared[0], shared[0]) if shared else ("loss", "training loss")
