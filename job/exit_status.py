"""The exit statuses of all commands."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """The meaning of an exit status; the numbers are the same on every target."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    JOB_FAILED = 100
    UNFINISHED = 101  # interrupted after a checkpoint: the same command resumes it
    NOT_FOUND = 102
    CANCELLED = 103
    OVER_BUDGET = 104
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """Return the description of the status."""
        return MEANINGS[self]


MEANINGS = {
    ExitStatus.DONE: "done",
    ExitStatus.ERROR: "an error; the message says what went wrong, why, and what to type next",
    ExitStatus.USAGE: "a mistake in the command line, a recipe or a setting; nothing was started",
    ExitStatus.JOB_FAILED: "the job failed; `runner logs RUN` shows why",
    ExitStatus.UNFINISHED: (
        "stopped early, checkpoint saved; to resume, repeat the command or use `runner resume RUN`"
    ),
    ExitStatus.NOT_FOUND: "no such run, file or folder",
    ExitStatus.CANCELLED: "you answered no when asked to confirm",
    ExitStatus.OVER_BUDGET: (
        "stopped by --max-cost or --budget, checkpoint saved; resume with a higher limit"
    ),
    ExitStatus.INTERRUPTED: (
        "interrupted or detached; a run on Modal or a box may still be active (`runner status`)"
    ),
}


class UserError(Exception):
    """An error that the user can fix; the message says what is wrong, why, and how to fix it."""

    status = ExitStatus.ERROR


class UsageError(UserError):
    """A mistake on the command line or in a file."""

    status = ExitStatus.USAGE


class RecipeError(UsageError, ValueError):
    """A mistake in a recipe or an override; the message is complete."""


class Interrupted(Exception):
    """The job was asked to stop. Its results are on disk, and the same command resumes."""
