"""The page of `runner report`: the content as plain values, which page.html.j2 lays out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.format import byte_size, dollars, duration, number, one_line, setting
from job.pretrained import TASKS
from job.run_record import Attempt
from runner.runs.history import History, format_results, results
from runner.runs.metrics import Curve
from runner.views.charts import TRAIN, VALIDATION, FormatNumber, Series, curves_svg

FOLDER = Path(__file__).parent

MARKER = 'content="gpt-runner report"'  # in the head of every report: such a file may be replaced

ATTEMPT_COLUMNS = ["", "started", "took", "steps", "device", "end", "cost"]

WIDE_INCHES = 6  # a wider picture gets a row of its own

TILES = (
    "validation loss",
    "best validation",
    "training loss",
    "step",
    "tokens",
    "tokens/s",
    "MFU",
    "memory",
    "training time",
    "parameters",
    "cost",
)


@dataclass(frozen=True)
class Picture:
    """One chart: its title, a description for screen readers, and the SVG."""

    title: str
    description: str
    svg: str
    wide: bool = False


def html(history: History, now: float) -> str:
    """Return the page; ``now`` is in seconds since the epoch."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("page.html.j2").render(
        page=content(history, now),
        pictures=pictures(history),
        style=Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
    )


def is_report(path: Path) -> bool:
    """Return True if the file is a report, so a newer one may replace it."""
    with path.open("rb") as file:
        return MARKER.encode() in file.read(2000)


def content(history: History, now: float) -> dict[str, Any]:
    """Return the values that page.html.j2 escapes and lays out, without control characters.

    ``now`` is in seconds since the epoch.
    """
    state, record, metrics = history.state, history.record, history.metrics
    texts = format_results(results(history))
    if texts.get("best validation", "").partition(" ")[0] == texts.get("validation loss"):
        texts.pop("best validation", None)
    overrides = [one_line(word) for word in record.overrides] if record else []
    started = record.attempts[0].started if record and record.attempts else state.started
    reason = one_line(state.reason or "") if not state.alive else ""
    tile_names = (*TILES, *map(one_line, record.result if record else ()))
    return {
        "run": one_line(state.run),
        "status": state.status,
        "subtitle": one_line(f"{state.job} on {state.target}")
        + (f" · started {format_time(started)}" if started else ""),
        "reason": reason if reason != state.status else "",
        "tiles": [(name, texts[name]) for name in tile_names if name in texts],
        "samples": history.samples,
        "evaluations": [
            (f"{p.step:,.0f}", number(p.tokens), f"{p.value:.4f}")
            for p in metrics.curves["val_loss"].points
        ],
        "best": f"{metrics.best[1]:.4f} at step {metrics.best[0]:,}" if metrics.best else "",
        "attempt_columns": ATTEMPT_COLUMNS,
        "attempts": attempt_rows(history, now),
        "settings": settings(history.recipe),
        "overrides": overrides,
        "overridden_keys": {word.partition("=")[0].rpartition(".")[2] for word in overrides},
        "environment": environment_rows(history, texts),
        "log": history.log,
        "created": format_time(now),
    }


def attempt_rows(history: History, now: float) -> list[list[str]]:
    """Return a row for each attempt, oldest first.

    A target that bills logs its attempts: their cost, and also those killed before they wrote a
    record.
    """
    if history.attempt_log.attempts:
        return [
            [
                str(index),
                format_time(logged.started),
                duration(logged.seconds(now)),
                "",
                one_line(logged.gpu) or "no GPU",
                one_line(logged.reason or ""),
                dollars(logged.cost(now)),
            ]
            for index, logged in enumerate(history.attempt_log.attempts, 1)
        ]
    rows = []
    for index, attempt in enumerate(history.record.attempts if history.record else [], 1):
        until = attempt.ended or (now if history.state.alive else None)
        first, last = attempt.first_step, attempt.last_step
        rows.append(
            [
                str(index),
                format_time(attempt.started),
                duration(until - attempt.started) if until else "",
                f"from {first:,}" if last is None else f"{first:,} to {last:,}",
                _device(attempt),
                one_line(attempt.reason or ""),
                "",
            ]
        )
    return rows


def settings(recipe: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the settings by section of the recipe."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for key, value in recipe.items():
        section, _, leaf = key.rpartition(".")
        sections.setdefault(one_line(section), []).append((one_line(leaf), setting(value)))
    # Keys without a section: the name of a recipe, or arguments of an experiment or command.
    plain = sections.pop("", [])
    return list(sections.items()) or ([("arguments", plain)] if plain else [])


def environment_rows(history: History, texts: dict[str, str]) -> list[tuple[str, str]]:
    """Return the machine, the code and the versions of the run."""
    record = history.record
    attempt = record.attempts[-1] if record and record.attempts else None
    commit = str(record.git.get("commit") or "") if record else ""
    if commit and record and record.git.get("dirty"):
        commit += ", with uncommitted changes"
    rows = [
        ("target", history.state.target),
        ("device", texts.get("device", "")),
        ("machine", attempt.host if attempt else ""),
        ("image", str(attempt.launch.get("image") or "") if attempt else ""),
        ("commit", commit),
        ("text", str(record.dataset.get("source") or "") if record else ""),
        *(record.versions.items() if record else ()),
        *history.state.trackers.items(),
        ("maximum cost", dollars(history.max_cost) if history.max_cost else ""),
    ]
    return [(one_line(str(name)), one_line(str(value))) for name, value in rows if value]


def format_time(seconds: float) -> str:
    """Return ``2026-11-21 03:26 UTC``."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _device(attempt: Attempt) -> str:
    count = f", {attempt.world_size} processes" if attempt.world_size > 1 else ""
    return one_line(f"{attempt.device}{count} ({attempt.host})")


def pictures(history: History) -> list[Picture]:
    """Return the losses in one wide chart, and one chart for every other metric."""
    curves = history.metrics.curves
    loss = [
        Series("training loss", curves["loss"], TRAIN),
        Series("validation loss", curves["val_loss"], VALIDATION, marks=True),
    ]
    attempt_steps = [a.first_step for a in (history.record.attempts[1:] if history.record else [])]
    drawn = [_picture("loss", loss, "{:.3g}".format, 11, 4.0, attempt_steps)]
    others: Sequence[tuple[str, str, FormatNumber]] = (
        ("tokens per second", "tokens_per_second", number),
        ("MFU", "mfu", "{:.0%}".format),
        ("GPU utilization", "gpu_use", "{:.0%}".format),
        ("memory", "memory_bytes", byte_size),
        ("learning rate", "lr", "{:.2g}".format),
        ("gradient norm", "grad_norm", "{:.3g}".format),
        *((one_line(key), key, "{:.3g}".format) for key in history.metrics.extra_curves),
    )
    for title, key, format_y in others:
        series = [Series(title, curves[key], TRAIN), *_published(key, curves[key])]
        drawn.append(_picture(title, series, format_y, 5.4, 2.5))
    return [picture for picture in drawn if picture is not None]


def _published(key: str, curve: Curve) -> list[Series]:
    """Return a horizontal line for each published score of a task."""
    task = TASKS.get(key.removeprefix("task/"))
    lines = []
    for name, score in task.published.items() if task and curve else ():
        line = Curve()
        for point in (curve.points[0], curve.points[-1]):
            line.add(point.step, point.tokens, point.seconds, score)
        lines.append(Series(name, line, VALIDATION))
    return lines


def _picture(
    title: str,
    series: Sequence[Series],
    format_y: FormatNumber,
    width: float,
    height: float,
    attempt_steps: Sequence[int] = (),
) -> Picture | None:
    series = [line for line in series if line.curve]
    if not series:
        return None
    parts = []
    for line in series:
        first, last = line.curve.points[0], line.curve.points[-1]
        parts.append(
            f"{line.name} from {format_y(first.value)} at step {first.step:,.0f} "
            f"to {format_y(last.value)} at step {last.step:,.0f}"
        )
    svg = curves_svg(title, series, format_y, width, height, attempt_steps)
    return Picture(title, "; ".join(parts), svg, width > WIDE_INCHES)
