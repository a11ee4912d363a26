"""Wait for a condition. Standard library only: the tests also run inside the image."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T], seconds: float = 60.0) -> T:
    """Return the value of ``condition`` as soon as it is true; fail after ``seconds``."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, f"the condition did not hold within {seconds:.0f} s"
        time.sleep(0.01)
    return answer
