"""Asking Modal again when it could not answer: what is worth asking again, and how long to wait."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class Unavailable(OSError):
    """Modal, or the way to it, did not answer as it should; asked again later it may."""


@dataclass(frozen=True)
class Patience:
    """How often a request is made, and the seconds between: ``first``, doubled each time, at most ``most``.

    The client itself repeats a call 3 times and an upload of a block 11 times within a second or a few; this
    comes on top: with the defaults about half a minute, which outlasts a switch from one network to another.
    """

    attempts: int = 7
    first: float = 0.5
    most: float = 10.0
    sleep: Callable[[float], None] = time.sleep

    def ask(self, request: Callable[[], T]) -> T:
        """``request()``, made again after each Unavailable; the last one is raised."""
        delay = self.first
        for _ in range(self.attempts - 1):
            try:
                return request()
            except Unavailable:
                # Half of it at random, so that parallel transfers don't come back all at once.
                self.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(delay * 2, self.most)
        return request()
