"""Waiting for what this process can't be told of: another process's end, a line in a file."""

from __future__ import annotations

import time
from collections.abc import Callable

from runner.errors import RunnerError

# Seconds between two looks: short against a checkpoint, long against a look's cost.
PAUSE = 0.1


def wait_until(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Look until ``condition`` holds. Raises RunnerError with the text ``otherwise`` after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RunnerError(otherwise)
        time.sleep(PAUSE)
