"""The exit statuses of all commands, and the errors that have one."""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """The meaning of an exit status; the numbers are the same on every target."""

    meaning: str

    # The default is for mypy, which takes a lookup such as ExitStatus(0) for a call of this.
    def __new__(cls, number: int, meaning: str = "") -> ExitStatus:
        status = int.__new__(cls, number)
        status._value_, status.meaning = number, meaning
        return status

    DONE = 0, "done"
    ERROR = 1, "an error; the message says what went wrong, why, and what to type next"
    USAGE = 2, "a mistake in the command line, a recipe or a setting; nothing was started"
    JOB_FAILED = 100, "the job failed; `runner logs RUN` shows why"
    UNFINISHED = (
        101,
        "stopped early, checkpoint saved; to resume, repeat the command or use `runner resume RUN`",
    )
    NOT_FOUND = 102, "no such run, file or folder"
    CANCELLED = 103, "you answered no when asked to confirm"
    OVER_BUDGET = (
        104,
        "stopped by --max-cost or --budget, checkpoint saved; resume with a higher limit",
    )
    INTERRUPTED = (
        130,
        "interrupted or detached; a run on Modal or a box may still be active (`runner status`)",
    )


class UserError(Exception):
    """An error that the user can fix; the message says what is wrong, why, and how to fix it."""

    status = ExitStatus.ERROR


class UsageError(UserError):
    """A mistake on the command line or in a file."""

    status = ExitStatus.USAGE


class RecipeError(UsageError, ValueError):
    """A mistake in a recipe or an override; the message is complete."""


class NonFiniteLoss(UserError):
    """The loss, the gradient or the weights are NaN or infinite."""

    status = ExitStatus.JOB_FAILED


class OutOfMemory(UserError):
    """The device's memory is too small for a step; the message says what to change."""

    status = ExitStatus.JOB_FAILED


class Interrupted(Exception):
    """The job was asked to stop. Its results are on disk, and the same command resumes."""
