"""Poll a run in a thread, so the screen reacts to keys while a connection hangs.

An unreachable target is polled until it answers: a laptop may sleep, a network may fail.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from runner.errors import RunnerError
from runner.runs.history import History, HistoryReader, RunFiles
from runner.views.dashboard import Snapshot

MAX_RETRY_INTERVAL_S = 5.0

# A longer poll hangs on a connection that died unnoticed, for example in sleep; a new one starts.
POLL_TIMEOUT_S = 60.0

SLOW_POLL_S = 10.0  # after which the screen says that it waits

Clock = Callable[[], float]  # seconds since the epoch: it also counts time asleep


class RunDeleted(Exception):
    """The run is not on any target."""


class RunPoller:
    """Polls a run every ``interval_s`` seconds; ``first`` is its first state.

    If its target no longer has the run, ``find_again`` returns the target on which it was
    resumed, or raises RunDeleted.
    """

    def __init__(
        self,
        reader: HistoryReader,
        first: History,
        interval_s: float,
        find_again: Callable[[], RunFiles],
        clock: Clock = time.time,
    ) -> None:
        self.run, self.source = reader.run, reader.source
        self.interval_s = interval_s
        self.find_again = find_again
        self.clock = clock
        self._snapshot = Snapshot(first, has_ended=has_ended(first))
        self._read_at = self.clock()  # the last poll that succeeded
        self._answered_at = self.clock()  # the last poll that succeeded or failed
        self._results: queue.SimpleQueue[tuple[int, History | Exception]] = queue.SimpleQueue()
        self._generation = 0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        if not self._snapshot.has_ended:
            self._start(reader)

    def newest(self) -> Snapshot:
        """Return the newest snapshot. Raises RunDeleted."""
        while True:
            try:
                generation, result = self._results.get_nowait()
            except queue.Empty:
                break
            if generation != self._generation:
                continue
            self._answered_at = self.clock()
            if isinstance(result, RunDeleted):
                raise result
            if isinstance(result, Exception):
                self._snapshot = replace(self._snapshot, error=describe(result))
            else:
                self._read_at = self._answered_at
                self._snapshot = Snapshot(result, has_ended=has_ended(result))
        if self._snapshot.has_ended:
            return self._snapshot
        now = self.clock()
        silent_s = now - self._answered_at
        if silent_s > SLOW_POLL_S + self.interval_s and not self._snapshot.error:
            self._snapshot = replace(self._snapshot, error="waiting for a response")
        if silent_s > POLL_TIMEOUT_S + self.interval_s:
            self._answered_at = now
            self._start(HistoryReader(self.run, self.source))
        return replace(self._snapshot, age=now - self._read_at)

    def stop(self, timeout_s: float) -> bool:
        """Stop polling; return False if the last poll does not end within ``timeout_s``."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    def _start(self, reader: HistoryReader) -> None:
        self._generation += 1
        self._thread = threading.Thread(
            target=self._poll, args=(reader, self._generation), daemon=True
        )
        self._thread.start()

    def _poll(self, reader: HistoryReader, generation: int) -> None:
        pause = self.interval_s if self._snapshot.history.is_complete else 0.0
        while not self._stopped.wait(pause) and generation == self._generation:
            try:
                history = reader.poll()
                if history is None:
                    reader = HistoryReader(self.run, self.find_again())
                    self.source = reader.source
                    continue
            except Exception as error:  # a network can raise anything; the screen shows it
                self._results.put((generation, error))
                if isinstance(error, RunDeleted):
                    return
                pause = min(max(pause, self.interval_s) * 2, MAX_RETRY_INTERVAL_S)
                continue
            self._results.put((generation, history))
            if has_ended(history):
                return
            pause = self.interval_s if history.is_complete else 0.0


def has_ended(history: History) -> bool:
    """Return True if the run has ended and everything was read."""
    return not history.state.alive and history.is_complete


def describe(error: Exception) -> str:
    """Return the error as one line."""
    if isinstance(error, RunnerError):
        return error.message
    if isinstance(error, OSError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"
