"""Run the engine in a thread, for coroutines that wait for their tokens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress

from inference.engine import Engine, Request
from job.exit_status import NonFiniteLoss
from job.recipe import SampleConfig
from serving.load import LoadedModel

ERROR = "error"  # why a request ended: see ``Batcher.error``
MAX_WAITING = 1024  # requests without a slot; more are refused

# A request's next token, if any, and why it ended. Not read from the request, which is steps ahead.
Event = tuple[Request, int | None, str | None]


class Batcher:
    """One engine whose requests join and leave its batch between tokens."""

    def __init__(self, model: LoadedModel, slots: int) -> None:
        self.engine = Engine(model.network, model.num_tokens, model.ends, slots)
        self._queues: dict[Request, asyncio.Queue[Event]] = {}
        self._wake = threading.Event()
        self._is_stopping = False
        self.error: str | None = None  # the network is broken, or the server stops

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread, which delivers tokens to ``loop``."""
        self._loop = loop
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and all requests after the current step."""
        self.error = self.error or "the server was stopped"
        self._is_stopping = True
        self._wake.set()

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()

    def is_full(self, texts: int) -> bool:
        """Return True if so many more texts would be too many."""
        return len(self.engine.queue) + texts > MAX_WAITING

    async def generate(
        self, prompts: list[list[int]], config: SampleConfig, seed: int
    ) -> AsyncGenerator[tuple[int, Event], None]:
        """Yield the number of a text, and its next token.

        A text ends early if its request is cancelled; closing the iterator ends all of them.
        """
        queue: asyncio.Queue[Event] = asyncio.Queue()
        seeds = range(seed, seed + len(prompts))
        prepared = zip(prompts, seeds, strict=True)
        requests = [self.engine.prepare(prompt, config, own) for prompt, own in prepared]
        self._queues |= dict.fromkeys(requests, queue)  # before the thread can see a request
        self.engine.queue.extend(requests)
        self._wake.set()
        unfinished = set(requests)
        try:
            while unfinished:
                request, token, finish = await queue.get()
                if request in unfinished:
                    yield requests.index(request), (request, token, finish)
                    if finish is not None or request.is_cancelled:
                        unfinished.remove(request)
        finally:
            for request in requests:
                request.is_cancelled = True
                del self._queues[request]

    def _run(self) -> None:
        while not self._is_stopping:
            if not self.engine.is_busy:
                self._wake.wait()
                self._wake.clear()
                continue
            try:
                self._deliver([(r, r.token, r.finish) for r in self.engine.step()])
            except NonFiniteLoss as error:
                self.error = str(error)
                self._fail()
        self._fail()

    def _fail(self) -> None:
        """End all requests with ``error``."""
        ended = [*self.engine.active, *self.engine.queue]
        self.engine.active.clear()
        self.engine.queue.clear()
        self._deliver([(request, None, ERROR) for request in ended])

    def _deliver(self, events: list[Event]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._put, events)

    def _put(self, events: list[Event]) -> None:
        for event in events:
            if (queue := self._queues.get(event[0])) is not None:
                queue.put_nowait(event)
