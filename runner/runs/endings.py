"""The end of a job: the runner's exit status and the message that goes with it."""

from __future__ import annotations

from job.exit_status import ExitStatus
from job.run_record import EndReason, RunStatus

# Exit statuses that jobs use as the runner does; any other failure is the job's own.
SHARED_STATUSES = {int(status) for status in ExitStatus} - {int(ExitStatus.ERROR)}

SIGKILL_STATUS = 137


def runner_status(code: int, recorded: str | None = None) -> ExitStatus:
    """Return the runner's exit status for a job that ended with ``code``.

    ``recorded`` is the status in the run's record: torchrun replaces the 101 of its workers by 1.
    """
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
            return f"the job failed with exit status {code}{killed}{logs}"
        case ExitStatus.INTERRUPTED if resumes:
            return f"interrupted; to resume from the last checkpoint:\n  {line}"
        case ExitStatus.INTERRUPTED:
            return "interrupted"
        case _:
            return None


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
