"""To wait for what another process does. Standard library only: these tests run inside the image too."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T], seconds: float = 60.0) -> T:
    """What ``condition`` answers as soon as it holds; fail after ``seconds``."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, f"it did not come to pass within {seconds:.0f} s"
        time.sleep(0.01)
    return answer
