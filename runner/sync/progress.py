"""How far a transfer is: a bar on a terminal, a line every few seconds off it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from job.quantities import byte_size
from runner.terminal import Environment

LINE_SECONDS = 10.0


class Progress:
    """Counts bytes and files; threads may share it. ``verb``: pulling, pushing."""

    def __init__(
        self, env: Environment, verb: str, files: int, size: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.env = env
        self.verb = verb
        self.files, self.size = files, size
        self.done_files, self.done_size = 0, 0
        self.now = now
        self.began = self.last = now()
        self._lock = threading.Lock()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self.env.is_terminal and self.files:
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=self.env.console(),
                transient=True,
            )
            self._task = self._bar.add_task(self._words(), total=self.size)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return max(self.now() - self.began, 1e-6)

    def advance(self, size: int) -> None:
        """So many bytes more are done; negative where they have to be done again."""
        with self._lock:
            self.done_size += size
            self._show()

    def file_done(self) -> None:
        """One file more is whole and in its place."""
        with self._lock:
            self.done_files += 1
            self._show()

    def _show(self) -> None:
        if not self.files:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done_size, description=self._words())
        elif self.now() - self.last >= LINE_SECONDS:
            self.last = self.now()
            rate = byte_size(int(self.done_size / self.seconds))
            self.env.say(f"{self._words()}, {byte_size(self.done_size)} of {byte_size(self.size)}, {rate}/s")

    def _words(self) -> str:
        return f"{self.verb} {self.done_files:,} of {count(self.files, 'file')}"


def count(number: int, noun: str) -> str:
    """``1 file``, ``2,000 files``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
