"""Wake up waiting coroutines, which check their condition again."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class Pulse:
    """A condition without a lock, for one event loop; the waiter checks its condition."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def beat(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout: float) -> None:
        """Return at the next beat, or after `timeout` seconds."""
        event = self._event
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(event.wait(), max(timeout, 0))
