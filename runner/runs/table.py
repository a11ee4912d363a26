"""Runs as text: a table of all, the rows of one, and the message about the end of a job."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby

from job.exit_status import ExitStatus
from job.format import dollars, one_line, short_result
from job.run_record import EndReason, RunStatus
from runner.console import COLUMN_GAP, CliContext, new_table
from runner.jobs import COMMAND
from runner.runs.store import SIGKILL_STATUS, SIGNAL_BASE, is_fresh
from runner.target import RunInfo

MAX_RESULT_IN_TABLE, MAX_RESULT = 40, 200  # characters of an experiment's result

# A narrow terminal drops these columns, the first one first. The other cells are never cut.
DROP_ORDER = ("tags", "device", "target", "job", "age", "estimated", "cost", "result")
RIGHT_ALIGNED = {"step", "loss", "cost", "estimated", "age"}

ACTIVE = (RunStatus.RUNNING, RunStatus.STARTING, RunStatus.QUEUED)


def show_runs(states: Sequence[RunInfo], cli: CliContext) -> None:
    """Print the table on stdout: it is data."""
    columns = table_columns(states)
    shown = fit_columns(columns, cli.console(data=True).width)
    table = new_table(*shown, left_aligned=shown.keys() - RIGHT_ALIGNED)
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)
    cli.print_table(table, data=True, min_width=_width(shown))
    if dropped := [title for title in columns if title not in shown]:
        cli.info(
            f"no room for {', '.join(dropped)}; widen the terminal or use `runner runs --json`"
        )


def table_columns(states: Sequence[RunInfo]) -> dict[str, list[str]]:
    """Return the cells by title, without columns that are empty for all runs."""
    columns = {
        "run": _names(states),
        "job": [state.job for state in states],
        "target": [f"{s.target} (copy)" if s.is_copy else s.target for s in states],
        "device": [state.gpu or "-" for state in states],
        "status": [status_text(state) for state in states],
        "step": [step_text(state) for state in states],
        "loss": ["-" if state.loss is None else f"{state.loss:.4f}" for state in states],
        "cost": [_dollars(state.cost) for state in states],
        "estimated": [_dollars(state.estimated_cost) for state in states],
        "age": [age(state.started) for state in states],
        "tags": [" ".join(state.tags) for state in states],
        "result": [short_result(state.result, MAX_RESULT_IN_TABLE) for state in states],
    }
    return {title: cells for title, cells in columns.items() if not {*cells} <= {"", "-"}}


def _names(states: Sequence[RunInfo]) -> list[str]:
    """Return the names, newest first; those of the same name on another target are marked."""
    seen: set[str] = set()
    names = []
    for state in states:
        names.append(f"{state.run} (older)" if state.run in seen else state.run)
        seen.add(state.run)
    return names


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
    named_values = [
        ("run", f"{state.run} ({state.job} on {state.target}{copy})"),
        ("status", status_text(state)),
        ("step", step_text(state)),
        ("loss", "" if state.loss is None else f"{state.loss:.4f}"),
        ("result", short_result(state.result, MAX_RESULT)),
        ("recipe", state.recipe),
        ("tags", " ".join(state.tags)),
        ("device", state.gpu or ""),
        ("attempts", attempts_text(state)),
        ("started", f"{age(state.started)} ago" if state.started else ""),
        ("cost", cost_text(state)),
        ("ended", state.reason or "" if not state.alive else ""),
        *(("tracker", url) for url in state.trackers.values()),
        ("folder", state.folder),
    ]
    return [(name, value) for name, value in named_values if value and value != "-"]


def status_text(state: RunInfo) -> str:
    """Return the status, such as ``queued, position 1``; ``running 3d ago`` for an old copy."""
    if state.queue_position is not None:
        return f"{state.status}, position {state.queue_position}"
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
    reasons = [f"{count} x {reason}" if count > 1 else reason for count, reason in groups]
    return f"{state.attempts}: {', '.join(reasons)}"


def step_text(state: RunInfo) -> str:
    """Return ``300/600``; ``0/0`` for pretrained weights that were only evaluated."""
    is_evaluated = state.job == "train" and state.loss is not None
    if state.max_steps or is_evaluated:
        return f"{state.step}/{state.max_steps}"
    return str(state.step) if state.step else "-"  # of a command that does not tell its last step


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


# Exit statuses that jobs use as the runner does; any other failure is the job's own.
SHARED_STATUSES = {int(status) for status in ExitStatus} - {int(ExitStatus.ERROR)}


def runner_status(code: int, recorded: str | None = None) -> ExitStatus:
    """Return the runner's exit status for a job that ended with ``code``.

    ``recorded`` is the status in the run's record: torchrun replaces the 101 of its workers by 1,
    and a signal can arrive after a job recorded that it finished.
    """
    if recorded == RunStatus.FINISHED and code > SIGNAL_BASE:
        return ExitStatus.DONE
    if code in SHARED_STATUSES:
        return ExitStatus(code)
    if recorded == RunStatus.UNFINISHED:
        return ExitStatus.UNFINISHED
    return ExitStatus.JOB_FAILED


def exit_message(
    status: ExitStatus, code: int, run: str, line: str, resumes: bool, ended: str = ""
) -> str | None:
    """Return the message for the user; None if the job has said it all.

    ``line`` is the command line, ``ended`` the end reason in the run's record.
    """
    if limit := limit_message(run, ended):
        return f"stopped: {limit}"
    match status:
        case ExitStatus.UNFINISHED if resumes:
            return f"unfinished; to resume, run the same command again:\n  {line}"
        case ExitStatus.UNFINISHED:
            return f"unfinished; run it again: {line}"
        case ExitStatus.JOB_FAILED:
            killed = " (killed, often for lack of memory)" if code == SIGKILL_STATUS else ""
            logs = f"; see its log: `runner logs {run}`" if resumes else ""
            error = f" ({one_line(ended.partition(': ')[2])})" if ": " in ended else ""
            return f"the job failed with exit status {code}{killed}{error}{logs}"
        case ExitStatus.INTERRUPTED if resumes:
            return f"interrupted; to resume from the last checkpoint:\n  {line}"
        case ExitStatus.INTERRUPTED:
            return "interrupted"
        case _:
            return None


def resume_message(run: str, job: str, options: str = "") -> str:
    """Return how to continue a run that ended early; a command may have no checkpoint."""
    effect = "starts it again" if job == COMMAND.name else "resumes it from its newest checkpoint"
    return (
        f"`runner resume {run}{options}` {effect}; "
        f"`runner logs {run} --tail 50` shows the end of its log"
    )


# The option of each limit, and the placeholder for a higher value.
LIMIT_OPTIONS: dict[str, tuple[str, str]] = {
    EndReason.BUDGET: ("--max-cost", "MORE"),
    EndReason.RUN_TIMEOUT: ("--timeout", "LONGER"),
}


def limit_option(reason: str) -> str:
    """Return the option whose limit ended the attempt; '' for any other reason."""
    return LIMIT_OPTIONS[reason][0] if reason in LIMIT_OPTIONS else ""


def limit_message(run: str, reason: str) -> str:
    """Return the message for a run that a limit ended; '' for any other reason."""
    if reason not in LIMIT_OPTIONS:
        return ""
    option, placeholder = LIMIT_OPTIONS[reason]
    return f"it reached its {option}; to resume: `runner resume {run} {option} {placeholder}`"
