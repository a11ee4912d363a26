"""Text to shards of tokens, and shards to batches. Free of torch."""

from collections.abc import Callable
from dataclasses import dataclass

from job.exit_status import UserError


class DataError(UserError, ValueError):
    """What is wrong with the data; its text is what the user reads: what, why, what to type next."""


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` bytes (or rows of Parquet) of input; tokens written so far, if any are."""

    phase: str
    done: int
    total: int
    tokens: int = 0


Report = Callable[[Progress | str], None]  # a job tells its caller a Progress or a sentence
Stop = Callable[[], bool]  # a job asks whether it should stop


def quiet(event: Progress | str) -> None:
    """The Report that says nothing."""


def never() -> bool:
    """The Stop of a job that nobody stops."""
    return False
