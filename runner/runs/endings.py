"""How a job's own exit status becomes ours, and what is said about it."""

from __future__ import annotations

from job.exit_status import ExitStatus
from job.run_record import EndReason, RunStatus

# What a job says in these words of its own is passed on; any other failure is that of the job.
OWN_WORDS = {int(status) for status in ExitStatus} - {int(ExitStatus.ERROR)}

SIGINT_STATUS, SIGKILL_STATUS = 130, 137


def runner_status(code: int, recorded: str | None = None) -> ExitStatus:
    """Our exit status for the job's ``code``.

    ``recorded`` is the status in the run's record after this attempt: torchrun turns the 101 of its workers
    into a 1, and the record knows better.
    """
    if code in OWN_WORDS:
        return ExitStatus(code)
    if recorded == RunStatus.UNFINISHED:
        return ExitStatus.UNFINISHED
    return ExitStatus.JOB_FAILED


def exit_message(
    status: ExitStatus, code: int, run: str, line: str, resumes: bool, ended: str = ""
) -> str | None:
    """What to tell the user; None where all is said. ``line`` is what was typed, ``ended`` why the record says that
    the attempt ended."""
    if cap := limit_message(run, ended):
        return f"stopped: {cap}"
    match status:
        case ExitStatus.UNFINISHED:
            again = (
                f"to go on, type the same again:\n  {line}" if resumes else f"type it again: {line}"
            )
            return f"unfinished; {again}"
        case ExitStatus.JOB_FAILED:
            killed = " (killed: often the memory was too small)" if code == SIGKILL_STATUS else ""
            logs = f"; `runner logs {run}` shows its log" if resumes else ""
            return f"the job failed with exit status {code}{killed}{logs}"
        case ExitStatus.INTERRUPTED:
            return "interrupted" + (
                f"; to go on from the last checkpoint:\n  {line}" if resumes else ""
            )
        case _:
            return None


# By the reason of an attempt's end: the option, and what is typed for more of it.
LIMIT_OPTIONS: dict[str, tuple[str, str]] = {
    EndReason.BUDGET: ("--max-cost", "MORE"),
    EndReason.RUN_TIMEOUT: ("--timeout", "LONGER"),
}


def limit_option(reason: str) -> str:
    """The option whose value is used up; '' for any other end."""
    return LIMIT_OPTIONS[reason][0] if reason in LIMIT_OPTIONS else ""


def limit_message(run: str, reason: str) -> str:
    """``its --max-cost is spent; `runner resume RUN --max-cost MORE` goes on``; '' for any other end."""
    if reason not in LIMIT_OPTIONS:
        return ""
    name, more = LIMIT_OPTIONS[reason]
    used_up = "spent" if reason == EndReason.BUDGET else "used up"
    return f"its {name} is {used_up}; `runner resume {run} {name} {more}` goes on"
