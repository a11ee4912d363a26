"""The table of `runner compare`: what differs in the recipes, and what came out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from job.format import one_line
from runner.format import setting
from runner.runs.history import History
from runner.runs.metrics import Axis
from runner.runs.results import format_results, results
from runner.views.charts import PALETTE, Stroke, draw, figure, png
from runner.views.terminal_plot import COLORS, Line, plot

MANY = 5  # runs from which on each has a line and not a column

BETTER: dict[str, Any] = {
    "training loss": ("train_loss", min),
    "validation loss": ("val_loss", min),
    "best validation": ("best_val_loss", min),
    "tokens/s": ("tokens_per_second", max),
    "MFU": ("mfu", max),
}

NOTHING = "–"

NOT_COMPARED = {"name"}  # of a recipe: it is the run's, or the file's


def differences(histories: Sequence[History]) -> dict[str, list[Any]]:
    """Each key of the recipes whose value is not the same in all → its values, in the order of the runs. A
    recipe of an earlier release may lack a key: then the value is None."""
    keys = {key: None for history in histories for key in history.recipe}
    found = {key: [history.recipe.get(key) for history in histories] for key in keys}
    found["text"] = [_text(history) for history in histories]
    return {
        key: values
        for key, values in found.items()
        if key not in NOT_COMPARED and any(value != values[0] for value in values)
    }


def _text(history: History) -> str | None:
    """What it really trained on: a dataset of the recipe's name may have been made of another text."""
    data = history.record.dataset if history.record else {}
    return f"{data['source']} ({data['fingerprint']})" if data else None


def rows(
    histories: Sequence[History],
) -> tuple[list[tuple[str, list[str]]], list[tuple[str, list[str]]]]:
    """The differences and the results in words: (name, a cell for each run)."""
    differ = [
        (key, [one_line(setting(value)) for value in values])
        for key, values in differences(histories).items()
    ]
    words = [format_results(results(history)) for history in histories]
    names = {name: None for found in words for name in found}
    order = sorted(
        names, key=lambda name: max(list(found).index(name) for found in words if name in found)
    )
    return differ, [(name, [found.get(name, NOTHING) for found in words]) for name in order]


def table(histories: Sequence[History]) -> Table:
    """A column for each run; a line for each where there are many."""
    differ, came_out = rows(histories)
    names = [history.state.run for history in histories]
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    if len(histories) >= MANY:
        shown.add_column("run")
        for name, _ in (*differ, *came_out):
            shown.add_column(name.rpartition(".")[2], overflow="fold")
        for i, run in enumerate(names):
            shown.add_row(run, *(cells[i] for _, cells in (*differ, *came_out)))
        return shown
    shown.add_column("")
    for run in names:
        shown.add_column(run, overflow="fold")
    for name, cells in differ:
        shown.add_row(Text(name, style="yellow"), *cells)
    if not differ:
        shown.add_row(Text("recipe", style="yellow"), *(["the same"] * len(names)))
    shown.add_section()
    found = [results(history) for history in histories]
    for name, cells in came_out:
        best = best_of(name, found)
        styled = [
            Text(cell, style="bold green" if i == best else "") for i, cell in enumerate(cells)
        ]
        shown.add_row(Text(name, style="dim"), *styled)
    return shown


def best_of(name: str, found: Sequence[dict[str, Any]]) -> int | None:
    """Which of the runs, by their results, did best in that; None where nothing is better than another."""
    key, better = BETTER.get(name, ("", min))
    numbers = {i: values[key] for i, values in enumerate(found) if values.get(key) is not None}
    return better(numbers, key=lambda i: numbers[i]) if len(set(numbers.values())) > 1 else None


def to_json(histories: Sequence[History]) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "differences": {
            key: {
                history.state.run: value for history, value in zip(histories, values, strict=True)
            }
            for key, values in differences(histories).items()
        },
        "runs": [
            {"run": history.state.run, **results(history), "recipe": history.recipe}
            for history in histories
        ],
    }


ENOUGH = 6  # evaluations that make a curve


def on_terminal(histories: Sequence[History], axis: Axis, width: int, height: int) -> Text | None:
    """Validation loss where all runs were evaluated often enough, else training loss."""
    key, name = _compared(histories)
    lines = [
        Line(history.state.run, history.metrics.curves[key], COLORS[i % len(COLORS)])
        for i, history in enumerate(histories)
    ]
    drawn = plot(lines, width, height, axis)
    return Text.assemble(f"{name}\n", drawn) if drawn is not None else None


def as_png(histories: Sequence[History], axis: Axis) -> bytes:
    """Training loss on the left, validation loss on the right."""
    made, panels = figure(13, 5, columns=2)
    for panel, key, title in zip(
        panels, ("loss", "val_loss"), ("training loss", "validation loss"), strict=True
    ):
        strokes = [
            Stroke(
                history.state.run,
                history.metrics.curves[key],
                PALETTE[i % len(PALETTE)],
                key == "val_loss",
                False,
            )
            for i, history in enumerate(histories)
            if history.metrics.curves[key]
        ]
        draw(panel, strokes, axis)
        panel.set_title(title, loc="left")
        if strokes:
            panel.legend(frameon=False)
    return png(made)


def _compared(histories: Sequence[History]) -> tuple[str, str]:
    def has(history: History) -> bool:
        return len(history.metrics.curves["val_loss"]) >= ENOUGH

    if all(has(history) for history in histories):
        return "val_loss", "validation loss"
    if any(history.metrics.curves["loss"] for history in histories):
        return "loss", "training loss"
    shared = [
        key
        for key in histories[0].metrics.extra_curves
        if all(key in h.metrics.curves for h in histories)
    ]
    return (shared[0], shared[0]) if shared else ("loss", "training loss")
