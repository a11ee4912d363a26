"""How runs look: a table of all, and the facts of one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby

from job.results import in_short
from job.run_record import RunStatus
from runner.console import CliContext
from runner.format import dollars
from runner.runs.store import is_fresh
from runner.target import RunInfo

PULLED = "; the copy that was pulled"
SHORT, LONG = 40, 200  # characters of an experiment's result


# Where a terminal is too narrow these go, the first first; the others stay, and stay whole.
LESS = ("gpu", "target", "job", "age", "estimated", "cost", "result")
RIGHT = ("step", "loss", "cost", "estimated", "age")
GAP = 2  # blanks between columns


def show_runs(states: Sequence[RunInfo], cli: CliContext) -> None:
    """Print the table on stdout: it is data."""
    from rich.table import Table

    everything = columns_of(states)
    columns = fitting(everything, cli.console(data=True).width)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for title in columns:
        table.add_column(title, no_wrap=True, justify="right" if title in RIGHT else "left")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    cli.print_table(table, data=True, least=_width(columns))
    if left_out := [title for title in everything if title not in columns]:
        cli.info(
            f"no room for {', '.join(left_out)}; a wider terminal shows all, and `runner runs --json`"
        )


def columns_of(states: Sequence[RunInfo]) -> dict[str, list[str]]:
    """The table by its titles, without the columns in which no run has anything."""
    found = {
        "run": [state.run for state in states],
        "job": [state.job for state in states],
        "target": [where(state) for state in states],
        "gpu": [state.gpu or "-" for state in states],
        "status": [standing(state) for state in states],
        "step": [step(state) for state in states],
        "loss": ["-" if state.loss is None else f"{state.loss:.4f}" for state in states],
        "cost": [in_dollars(state.cost) for state in states],
        "estimated": [in_dollars(state.estimated_cost) for state in states],
        "age": [age(state.started) for state in states],
        "result": [in_short(state.result, SHORT) for state in states],
    }
    return {title: cells for title, cells in found.items() if not {*cells} <= {"", "-"}}


def fitting(columns: dict[str, list[str]], width: int) -> dict[str, list[str]]:
    """The columns that a terminal of ``width`` characters has room for."""
    kept = dict(columns)
    # Two runs of one name are told apart by their targets alone; where all have the same one it says least.
    order = sorted(LESS, key="target".__eq__) if len({*columns.get("target", ())}) > 1 else LESS
    for title in order:
        if _width(kept) <= width:
            break
        kept.pop(title, None)
    return kept


def _width(columns: dict[str, list[str]]) -> int:
    from rich.cells import cell_len

    return sum(max(map(cell_len, [title, *cells])) + GAP for title, cells in columns.items())


def rows(state: RunInfo) -> list[tuple[str, str]]:
    """The facts of one run, for ``runner status``."""
    found = [
        ("run", f"{state.run} ({state.job} on {state.target}{PULLED if state.is_copy else ''})"),
        ("status", standing(state)),
        ("step", step(state)),
        ("loss", "" if state.loss is None else f"{state.loss:.4f}"),
        ("result", in_short(state.result, LONG)),
        ("gpu", state.gpu or ""),
        ("attempts", attempts(state)),
        ("started", f"{age(state.started)} ago" if state.started else ""),
        ("cost", cost(state)),
        ("ended", state.reason or "" if not state.alive else ""),
        ("folder", state.folder),
    ]
    return [(name, value) for name, value in found if value and value != "-"]


def in_dollars(amount: float | None) -> str:
    """``$1.31``; nothing is known of some runs."""
    return "-" if amount is None else dollars(amount)


def where(state: RunInfo) -> str:
    """The target; of the cloud alone there are copies here."""
    return f"{state.target} (copy)" if state.is_copy else state.target


def standing(state: RunInfo) -> str:
    """The status; ``running 3d ago`` of a copy that was pulled while the run was at work: it says nothing of now."""
    at_work = state.status in (RunStatus.RUNNING, RunStatus.STARTING)
    if not at_work or state.seen is None or is_fresh(time.time() - state.seen):
        return state.status
    return f"{state.status} {age(state.seen)} ago"


def cost(state: RunInfo) -> str:
    """``$1.31, estimated at $1.20 before it began, at $1.33 by its own pace``."""
    if state.cost is None:
        return ""
    words = dollars(state.cost)
    if state.estimated_cost is not None:
        words += f", estimated at {dollars(state.estimated_cost)} before it began"
    if state.expected_cost is not None:
        words += f", at {dollars(state.expected_cost)} in all by its own pace"
    return words


def attempts(state: RunInfo) -> str:
    """``6: 5 x preempted, finished``. One alone needs no list: its end is a row of its own."""
    if state.attempts < 2:
        return str(state.attempts) if state.attempts else ""
    words = [
        f"{count} x {end}" if (count := len([*same])) > 1 else end
        for end, same in groupby(state.ends)
    ]
    return f"{state.attempts}: {', '.join(words)}" if words else str(state.attempts)


def step(state: RunInfo) -> str:
    """``300/600``; ``0/0`` of published weights that were only measured."""
    is_measured = state.job == "train" and state.loss is not None
    return f"{state.step}/{state.max_steps}" if state.max_steps or is_measured else "-"


def age(since: float | None, now: float | None = None) -> str:
    """How long ago, in the largest unit that says something: 40s, 12m, 3h, 5d."""
    if since is None:
        return "-"
    seconds = max(0.0, (time.time() if now is None else now) - since)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
