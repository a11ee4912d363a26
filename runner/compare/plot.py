"""The curves of several runs in one plot: on the terminal, and as a PNG."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from runner.history.curve import Axis
from runner.history.figures import PALETTE, Stroke, draw, figure, png
from runner.history.reader import History
from runner.screen.plot import COLORS, Line, plot

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
    shared = [key for key in histories[0].metrics.others if all(key in h.metrics.curves for h in histories)]
    return (shared[0], shared[0]) if shared else ("loss", "training loss")
