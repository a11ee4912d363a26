"""Questions to Modal that are waited for in threads, and can be given up.

A thread that waits in the client can't be told to stop. One that is still there when the process ends is cut off by the
client itself, which prints a traceback for each; so what follows a run asks through this.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

ENOUGH = 5.0  # seconds that giving them up may take


class Left(BaseException):
    """The question was given up. No Exception: nothing that mends a connection may catch it."""


class Leavable:
    """While entered, ``ask`` and ``each`` wait in any thread; leaving makes them raise ``Left``."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._is_left = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._stay()), daemon=True)

    async def _stay(self) -> None:
        self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._leave.wait()  # asyncio.run then cancels what is still asked, and waits for that

    def __enter__(self) -> Leavable:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_left = True
        self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(ENOUGH)

    def ask(self, question: Coroutine[Any, Any, T]) -> T:
        """What it answers, or raises."""
        if self._is_left:
            question.close()
            raise Left
        try:
            return asyncio.run_coroutine_threadsafe(question, self._loop).result()
        except BaseException as error:
            if self._is_left:
                raise Left from error
            raise

    def each(self, answers: AsyncIterator[T]) -> Iterator[T]:
        """One answer after the other."""
        while True:
            try:
                yield self.ask(_next(answers))
            except StopAsyncIteration:
                return


async def _next(answers: AsyncIterator[T]) -> T:
    return await anext(answers)
