"""What a report says of a run: plain values, made from what was read. The template gives them their form."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job.format import duration, one_line
from job.run_record import Attempt
from runner.format import dollars, number, setting
from runner.runs.attempts import AttemptLog
from runner.runs.history import History, Sample
from runner.runs.results import format_results, results
from runner.views.report_curves import pictures

ATTEMPT_NAMES = ["", "began", "took", "steps", "on", "ended", "cost"]

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
class Page:
    """All text is as it is in the files, without control characters; escaping it is the template's part."""

    run: str
    status: str
    what: str
    reason: str
    tiles: list[tuple[str, str]]
    samples: tuple[Sample, ...]
    evaluations: list[tuple[str, str, str]]
    best: str
    attempts: list[list[str]]
    settings: list[tuple[str, list[tuple[str, str]]]]
    overrides: list[str]
    given: set[str]
    environment: list[tuple[str, str]]
    log: tuple[str, ...]
    made: str
    attempt_names: list[str] = field(default_factory=lambda: ATTEMPT_NAMES)


def content(history: History, now: float) -> Page:
    """The page of a run, ``now`` in seconds since the epoch."""
    state, record, metrics = history.state, history.record, history.metrics
    words = format_results(results(history))
    if words.get("best validation", "").partition(" ")[0] == words.get("validation loss"):
        words.pop("best validation", None)
    overrides = [one_line(word) for word in record.overrides] if record else []
    began = record.attempts[0].started if record and record.attempts else state.started
    reason = one_line(state.reason or "") if not state.alive else ""
    return Page(
        run=state.run,
        status=state.status,
        what=f"{state.job} on {state.target}" + (f" · began {moment(began)}" if began else ""),
        reason=reason if reason != state.status else "",
        tiles=[
            (name, words[name])
            for name in (*TILES, *(record.result if record else ()))
            if name in words
        ],
        samples=history.samples,
        evaluations=[
            (f"{p.step:,.0f}", number(p.tokens), f"{p.value:.4f}")
            for p in metrics.curves["val_loss"].points
        ],
        best=f"{metrics.best[1]:.4f} at step {metrics.best[0]:,}" if metrics.best else "",
        attempts=attempts(history, now),
        settings=settings(history.recipe),
        overrides=overrides,
        given={word.partition("=")[0].rpartition(".")[2] for word in overrides},
        environment=environment(history, words),
        log=history.log,
        made=moment(now),
    )


def attempts(history: History, now: float) -> list[list[str]]:
    """A row for each attempt, the oldest first. Those in the cloud are known by its ledger too: what each cost,
    and those that were killed before they could write a record."""
    ledger = history.attempt_log
    if ledger.attempts:
        return _of_ledger(ledger, now)
    rows = []
    for index, attempt in enumerate(history.record.attempts if history.record else [], 1):
        until = attempt.ended or (now if history.state.alive else None)
        last = attempt.last_step if attempt.last_step is not None else ""
        rows.append(
            [
                str(index),
                moment(attempt.started),
                duration(until - attempt.started) if until else "",
                f"{attempt.first_step:,} to {last:,}"
                if last != ""
                else f"from {attempt.first_step:,}",
                _where(attempt),
                one_line(attempt.reason or ""),
                "",
            ]
        )
    return rows


def _of_ledger(ledger: AttemptLog, now: float) -> list[list[str]]:
    return [
        [
            str(number),
            moment(attempt.started),
            duration(attempt.seconds(now)),
            "",
            one_line(attempt.gpu) or "no GPU",
            one_line(attempt.reason or ""),
            dollars(attempt.cost(now)),
        ]
        for index, attempt in enumerate(ledger.attempts, 1)
    ]


def settings(recipe: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The recipe by section."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for key, value in recipe.items():
        section, _, leaf = key.rpartition(".")
        sections.setdefault(one_line(section), []).append((one_line(leaf), setting(value)))
    alone = sections.pop("", [])  # of an experiment or a command; of a recipe only its name
    return list(sections.items()) or ([("given", alone)] if alone else [])


def environment(history: History, words: dict[str, str]) -> list[tuple[str, str]]:
    """Where it ran, and of what code."""
    record = history.record
    attempt = record.attempts[-1] if record and record.attempts else None
    commit = str(record.git.get("commit") or "") if record else ""
    rows = [
        ("target", history.state.target),
        ("device", words.get("device", "")),
        ("machine", attempt.host if attempt else ""),
        ("image", str(attempt.launch.get("image") or "") if attempt else ""),
        (
            "commit",
            commit
            + (
                " and changes that were not committed"
                if commit and record and record.git.get("dirty")
                else ""
            ),
        ),
        ("text", str(record.dataset.get("source") or "") if record else ""),
        *(record.versions.items() if record else ()),
        ("cap", dollars(history.max_cost) if history.max_cost else ""),
    ]
    return [(one_line(str(name)), one_line(str(value))) for name, value in rows if value]


def moment(seconds: float) -> str:
    """``2026-11-21 03:26 UTC``."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _where(attempt: Attempt) -> str:
    count = f", {attempt.world_size} processes" if attempt.world_size > 1 else ""
    return one_line(f"{attempt.device}{count} ({attempt.host})")


HERE = Path(__file__).parent

MARK = 'content="gpt-runner report"'  # in the head of each: a file that has it may be replaced


def html(history: History, now: float) -> str:
    """The page; ``now`` in seconds since the epoch."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=False
    )
    return made.get_template("page.html.j2").render(
        page=content(history, now),
        pictures=pictures(history),
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
    )


def is_report(path: Path) -> bool:
    """Whether the file is a report, and so may be replaced by a newer one."""
    with path.open("rb") as file:
        return MARK.encode() in file.read(2000)
