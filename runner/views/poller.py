"""Looks at a run from a thread of its own, so that a screen answers to keys while a connection does not.

A place that does not answer is asked again, however long it takes: a laptop that slept, a network that went.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from runner.errors import RunnerError
from runner.runs.history import History, HistoryReader, RunFiles
from runner.views.dashboard import Snapshot

LONGEST_PAUSE = 5.0  # seconds between two questions to a place that does not answer

# Seconds. A look that takes longer hangs on a connection that died unnoticed, as in sleep: another is begun.
HANGS_AFTER = 60.0

SILENT_AFTER = 10.0  # seconds of a look, from which on the screen says that it waits


class RunDeleted(Exception):
    """The run is on no target any more."""


@dataclass
class Clock:
    """Time as a person sees it, in seconds since the epoch; it also counts what the machine slept."""

    now: Callable[[], float] = time.time


class RunPoller:
    """Looks each ``every`` seconds. ``first`` is the run at the first look, ``elsewhere`` finds it again where
    its target has it no more: it may have been resumed on another one. It raises Gone."""

    def __init__(
        self,
        reader: HistoryReader,
        first: History,
        every: float,
        elsewhere: Callable[[], RunFiles],
        clock: Clock | None = None,
    ) -> None:
        self.run, self.target = reader.run, reader.source
        self.every = every
        self.elsewhere = elsewhere
        self.clock = clock or Clock()
        self.seen = Snapshot(first, over=is_over(first))
        self._looked = self.clock.now()  # the last look that brought something
        self._asked = self.clock.now()
        self._results: queue.SimpleQueue[tuple[int, History | Exception]] = queue.SimpleQueue()
        self._generation = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if not self.seen.over:
            self._begin(reader)

    def newest(self) -> Snapshot:
        """The newest look. Raises Gone where the run was removed."""
        while True:
            try:
                generation, result = self._results.get_nowait()
            except queue.Empty:
                break
            if generation != self._generation:
                continue
            self._asked = self.clock.now()
            if isinstance(result, RunDeleted):
                raise result
            if isinstance(result, Exception):
                self.seen = replace(self.seen, trouble=in_words(result))
            else:
                self._looked = self._asked
                self.seen = Snapshot(result, over=is_over(result))
        now = self.clock.now()
        if self.seen.over:
            return self.seen
        silent = now - self._asked
        if silent > SILENT_AFTER + self.every and not self.seen.trouble:
            self.seen = replace(self.seen, trouble="the connection says nothing")
        if silent > HANGS_AFTER + self.every:
            self._asked = now
            self._begin(HistoryReader(self.run, self.target))
        return replace(self.seen, age=now - self._looked)

    def stop(self, seconds: float) -> bool:
        """Look no more; whether the last look ended within ``seconds``."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def _begin(self, reader: HistoryReader) -> None:
        self._generation += 1
        self._thread = threading.Thread(
            target=self._look, args=(reader, self._generation), daemon=True
        )
        self._thread.start()

    def _look(self, reader: HistoryReader, generation: int) -> None:
        pause = 0.0 if not self.seen.history.is_complete else self.every
        while not self._ended.wait(pause) and generation == self._generation:
            try:
                history = reader.poll()
                if history is None:
                    reader = HistoryReader(self.run, self.elsewhere())
                    self.target = reader.source
                    continue
            except (
                Exception
            ) as error:  # whatever a network may bring: the screen says it and goes on
                self._results.put((generation, error))
                if isinstance(error, RunDeleted):
                    return
                pause = min(max(pause, self.every) * 2, LONGEST_PAUSE)
                continue
            self._results.put((generation, history))
            if is_over(history):
                return
            pause = self.every if history.is_complete else 0.0


def is_over(history: History) -> bool:
    """Whether the run has ended and all of it was read."""
    return not history.state.alive and history.is_complete


def in_words(error: Exception) -> str:
    """What went wrong, in a line."""
    if isinstance(error, RunnerError):
        return error.message
    return (
        str(error)
        if isinstance(error, OSError) and str(error)
        else f"{type(error).__name__}: {error}"
    )
