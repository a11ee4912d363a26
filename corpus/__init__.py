"""Turn text into token shards and shards into batches. This package imports no torch."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from job.exit_status import ExitStatus, Interrupted, UserError


class DataError(UserError, ValueError):
    """The data cannot be used; the text says what is wrong, why, and how to fix it."""


class InvalidSource(DataError):
    """``data.source`` is not a path or URL that could ever be read."""

    status = ExitStatus.USAGE


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` input bytes (Parquet: rows), and the tokens written so far."""

    phase: str
    done: int
    total: int
    tokens: int = 0


@dataclass(frozen=True)
class Monitor:
    """Receive progress and one-line messages, decide when to stop, and wait between attempts."""

    report: Callable[[Progress | str], None] = lambda event: None
    should_stop: Callable[[], bool] = lambda: False
    pause: Callable[[float], None] = time.sleep

    def check(self) -> None:
        """Raise Interrupted if the work should stop."""
        if self.should_stop():
            raise Interrupted


NO_MONITOR = Monitor()


def printable(text: object) -> str:
    """Return a path or name for a message, with undecodable and control characters escaped."""
    shown = (
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in str(text)
    )
    return "".join(shown)
