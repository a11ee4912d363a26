"""All exit codes of the project, in one place."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """What the exit status of a command means; the same numbers on every target."""

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
        """In words, for a person."""
        return MEANINGS[self]


MEANINGS = {
    ExitStatus.DONE: "done",
    ExitStatus.ERROR: "an error; the text says what, why and what to type next",
    ExitStatus.USAGE: "a mistake in the line, a recipe or a setting; nothing was begun",
    ExitStatus.JOB_FAILED: "the job failed; `runner logs RUN` shows why",
    ExitStatus.UNFINISHED: "unfinished: stopped after a checkpoint; the same line, or `runner resume RUN`, goes on",
    ExitStatus.NOT_FOUND: "no such run, file or folder",
    ExitStatus.CANCELLED: "the question was answered with no",
    ExitStatus.OVER_BUDGET: "stopped by --max-cost or --budget, after a checkpoint; more money goes on",
    ExitStatus.INTERRUPTED: "interrupted by Ctrl-C",
}


class UserError(Exception):
    """What a person can mend; the text is all that they read: what, why and what to type next."""

    status = ExitStatus.ERROR


class RecipeError(UserError, ValueError):
    """A mistake in a recipe or an override; the message is complete."""

    status = ExitStatus.USAGE


class Interrupted(Exception):
    """The job was asked to stop; what it has done is on disk, and the same command goes on."""
