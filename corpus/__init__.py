"""Turn text into token shards and shards into batches. Nothing here imports torch."""

from collections.abc import Callable
from dataclasses import dataclass

from job.exit_status import ExitStatus, UserError


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


Report = Callable[[Progress | str], None]  # receives progress and one-line messages
Stop = Callable[[], bool]  # returns True when the work should stop


def quiet(event: Progress | str) -> None:
    """Ignore a report."""


def never() -> bool:
    """Never ask the work to stop."""
    return False


def printable(text: object) -> str:
    """Return a path or name for a message, with undecodable and control characters escaped."""
    shown = (
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in str(text)
    )
    return "".join(shown)
