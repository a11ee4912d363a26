"""Runs as text: a table of all, and the rows of one."""

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

MAX_RESULT_IN_TABLE, MAX_RESULT = 40, 200  # characters of an experiment's result

# A narrow terminal drops these columns, the first one first. The other cells are never cut.
DROP_ORDER = ("gpu", "target", "job", "age", "estimated", "cost", "result")
RIGHT_ALIGNED = ("step", "loss", "cost", "estimated", "age")
COLUMN_GAP = 2

ACTIVE = (RunStatus.RUNNING, RunStatus.STARTING)


def show_runs(states: Sequence[RunInfo], cli: CliContext) -> None:
    """Print the table on stdout: it is data."""
    from rich.table import Table

    columns = table_columns(states)
    shown = fit_columns(columns, cli.console(data=True).width)
    table = Table(box=None, pad_edge=False, padding=(0, COLUMN_GAP, 0, 0), header_style="dim")
    for title in shown:
        is_right = title in RIGHT_ALIGNED
        table.add_column(title, no_wrap=True, justify="right" if is_right else "left")
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)
    cli.print_table(table, data=True, least=_width(shown))
    if dropped := [title for title in columns if title not in shown]:
        cli.info(
            f"no room for {', '.join(dropped)}; widen the terminal or use `runner runs --json`"
        )


def table_columns(states: Sequence[RunInfo]) -> dict[str, list[str]]:
    """Return the cells by title, without columns that are empty for all runs."""
    columns = {
        "run": [state.run for state in states],
        "job": [state.job for state in states],
        "target": [f"{s.target} (copy)" if s.is_copy else s.target for s in states],
        "gpu": [state.gpu or "-" for state in states],
        "status": [status_text(state) for state in states],
        "step": [step_text(state) for state in states],
        "loss": ["-" if state.loss is None else f"{state.loss:.4f}" for state in states],
        "cost": [_dollars(state.cost) for state in states],
        "estimated": [_dollars(state.estimated_cost) for state in states],
        "age": [age(state.started) for state in states],
        "result": [in_short(state.result, MAX_RESULT_IN_TABLE) for state in states],
    }
    return {title: cells for title, cells in columns.items() if not {*cells} <= {"", "-"}}


def fit_columns(columns: dict[str, list[str]], width: int) -> dict[str, list[str]]:
    """Return the columns that fit a terminal of ``width`` characters."""
    shown = dict(columns)
    order: Sequence[str] = DROP_ORDER
    if len({*columns.get("target", ())}) > 1:  # then only the target tells two runs of a name apart
        order = [*(title for title in DROP_ORDER if title != "target"), "target"]
    for title in order:
        if _width(shown) <= width:
            break
        shown.pop(title, None)
    return shown


def _width(columns: dict[str, list[str]]) -> int:
    from rich.cells import cell_len

    return sum(max(map(cell_len, [title, *cells])) + COLUMN_GAP for title, cells in columns.items())


def rows(state: RunInfo) -> list[tuple[str, str]]:
    """Return the names and values of one run, for ``runner status``."""
    copy = "; the copy that was pulled" if state.is_copy else ""
    found = [
        ("run", f"{state.run} ({state.job} on {state.target}{copy})"),
        ("status", status_text(state)),
        ("step", step_text(state)),
        ("loss", "" if state.loss is None else f"{state.loss:.4f}"),
        ("result", in_short(state.result, MAX_RESULT)),
        ("gpu", state.gpu or ""),
        ("attempts", attempts_text(state)),
        ("started", f"{age(state.started)} ago" if state.started else ""),
        ("cost", cost_text(state)),
        ("ended", state.reason or "" if not state.alive else ""),
        ("folder", state.folder),
    ]
    return [(name, value) for name, value in found if value and value != "-"]


def status_text(state: RunInfo) -> str:
    """Return the status; ``running 3d ago`` for a copy that was pulled from an active run."""
    is_recent = state.last_seen is None or is_fresh(time.time() - state.last_seen)
    if state.status not in ACTIVE or is_recent:
        return state.status
    return f"{state.status} {age(state.last_seen)} ago"


def cost_text(state: RunInfo) -> str:
    """Return ``$1.31 (estimate $1.20; $1.33 in all at its measured speed)``."""
    if state.cost is None:
        return ""
    estimates = []
    if state.estimated_cost is not None:
        estimates.append(f"estimate {dollars(state.estimated_cost)}")
    if state.expected_cost is not None:
        estimates.append(f"{dollars(state.expected_cost)} in all at its measured speed")
    return dollars(state.cost) + (f" ({'; '.join(estimates)})" if estimates else "")


def attempts_text(state: RunInfo) -> str:
    """Return ``6: 5 x preempted, finished``; only the number for a single attempt."""
    if state.attempts < 2 or not state.end_reasons:
        return str(state.attempts) if state.attempts else ""
    groups = [(len([*same]), reason) for reason, same in groupby(state.end_reasons)]
    words = [f"{count} x {reason}" if count > 1 else reason for count, reason in groups]
    return f"{state.attempts}: {', '.join(words)}"


def step_text(state: RunInfo) -> str:
    """Return ``300/600``; ``0/0`` for pretrained weights that were only evaluated."""
    is_evaluated = state.job == "train" and state.loss is not None
    return f"{state.step}/{state.max_steps}" if state.max_steps or is_evaluated else "-"


def age(since: float | None, now: float | None = None) -> str:
    """Return the time since then in its largest unit: 40s, 12m, 3h, 5d."""
    if since is None:
        return "-"
    seconds = max(0.0, (time.time() if now is None else now) - since)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def _dollars(amount: float | None) -> str:
    return "-" if amount is None else dollars(amount)
