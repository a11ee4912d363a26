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


class UserError(Exception):
    """What a person can mend; the text is all that they read: what, why and what to type next."""

    status = ExitStatus.ERROR


class Interrupted(Exception):
    """The job was asked to stop; what it has done is on disk, and the same command goes on."""
