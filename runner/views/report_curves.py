"""A run's curves as inline SVG, which takes its colours from the page: the same page is dark or light."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from job.format import byte_size, one_line
from runner.format import number
from runner.runs.history import History
from runner.views.charts import Stroke, draw, figure

# matplotlib knows no variables of a style sheet. It draws with these, and they are replaced afterwards.
INK, RULE, TRAIN, VAL = "#010203", "#010204", "#010205", "#010206"

VARIABLES = {INK: "var(--soft)", RULE: "var(--rule)", TRAIN: "var(--train)", VAL: "var(--val)"}

WIDE = 6  # inches from which on a picture has a line of its own


@dataclass(frozen=True)
class Picture:
    """A curve of the page: its title, what it shows in words (for who does not see it), the SVG itself."""

    title: str
    words: str
    svg: str
    wide: bool = False


def pictures(history: History) -> list[Picture]:
    """The loss, wide, and whatever else was measured."""
    curves = history.metrics.curves
    loss = [
        Stroke("training loss", curves["loss"], TRAIN),
        Stroke("validation loss", curves["val_loss"], VAL, True),
    ]
    begun = [a.first_step for a in (history.record.attempts[1:] if history.record else [])]
    found = [_picture("loss", loss, "{:.3g}".format, 11, 4.0, begun)]
    own = [(one_line(key), key, "{:.3g}".format) for key in history.metrics.extra_curves]
    others: Sequence[tuple[str, str, Callable[[float], str]]] = (
        ("tokens a second", "tokens_per_second", number),
        ("MFU", "mfu", "{:.0%}".format),
        ("GPU in use", "gpu_use", "{:.0%}".format),
        ("memory", "memory_bytes", byte_size),
        ("learning rate", "lr", "{:.2g}".format),
        ("norm of the gradient", "grad_norm", "{:.3g}".format),
        *own,
    )
    for title, key, numbers in others:
        if curves[key]:
            found.append(_picture(title, [Stroke(title, curves[key], TRAIN)], numbers, 5.4, 2.5))
    return [picture for picture in found if picture is not None]


def _picture(
    title: str,
    strokes: Sequence[Stroke],
    numbers: Callable[[float], str],
    width: float,
    height: float,
    begun: Sequence[int] = (),
) -> Picture | None:
    """``begun``: the steps from which later attempts went on."""
    strokes = [stroke for stroke in strokes if stroke.curve]
    if not strokes:
        return None
    words = []
    for stroke in strokes:
        first, last = stroke.curve.points[0], stroke.curve.points[-1]
        words.append(
            f"{stroke.name} from {numbers(first.value)} at step {first.step:,.0f} "
            f"to {numbers(last.value)} at step {last.step:,.0f}"
        )
    svg = _svg(title, strokes, numbers, width, height, begun)
    return Picture(title, "; ".join(words), svg, width > WIDE)


def _svg(
    title: str,
    strokes: Sequence[Stroke],
    numbers: Callable[[float], str],
    width: float,
    height: float,
    begun: Sequence[int],
) -> str:
    import matplotlib

    style: Any = {
        "svg.fonttype": "none",  # text stays text: small, found by a search, in the page's font
        "svg.hashsalt": title,  # names inside one picture are not those of another
        "text.parse_math": False,  # an experiment may call a number what it likes
        "font.size": 9,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "text.color": INK,
        "grid.color": RULE,
    }
    with matplotlib.rc_context(style):
        made, (axes,) = figure(width, height)
        draw(axes, strokes, "step", numbers)
        for i, step in enumerate(begun):
            label = "another attempt begins" if i == 0 else None
            axes.axvline(step, color=INK, linestyle=":", linewidth=1, label=label)
        if len(strokes) > 1:
            axes.legend(frameon=False)
        out = io.StringIO()
        made.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(out.getvalue())


def _inline(svg: str) -> str:
    """What stands in a page: no prologue, no metadata, the page's colours and font, as wide as its place."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1
    )
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(
        r'<g id="[^"]*"', "<g", svg
    )  # names that nothing refers to, the same in every picture
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, variable)
    return svg
