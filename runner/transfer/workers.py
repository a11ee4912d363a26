"""Run transfers in parallel, show their progress, and give up when nothing can succeed."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from job.exit_status import ExitStatus
from job.format import byte_size, count
from runner.console import CliContext
from runner.errors import RunnerError, TargetUnavailable

PARALLEL_FILES = 16
PARALLEL_BLOCKS = 16  # of 8 MiB: 128 MiB of memory at most
POLL_INTERVAL_S = 0.2
LINE_INTERVAL_S = 10.0  # between lines of progress without a terminal
SHUTDOWN_TIMEOUT_S = 3.0  # for blocks in flight after an error or Ctrl-C

# Each transfer retries for half a minute: after so many failures in a row the network is down.
MAX_CONSECUTIVE_FAILURES = 4

# Errors of the disk or the process: every other file would fail too.
FATAL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE}

NOT_STARTED = "not started"


class Cancelled(Exception):
    """The transfer was cancelled before this file was complete."""


@dataclass(frozen=True)
class Task:
    """One transfer of the files ``paths``."""

    paths: tuple[str, ...]
    run: Callable[[], None]


@dataclass(frozen=True)
class FailedTransfer:
    """A file that was not transferred, and why."""

    path: str
    reason: str


class Workers:
    """Run tasks, and the blocks of large files, in two pools, so that no task waits for another."""

    def __init__(self) -> None:
        self._name = f"transfer-{id(self)}-"
        self._tasks = ThreadPoolExecutor(PARALLEL_FILES, f"{self._name}file")
        self._blocks = ThreadPoolExecutor(PARALLEL_BLOCKS, f"{self._name}block")
        self._cancelled = threading.Event()
        self._consecutive_failures = 0
        self._reason = NOT_STARTED

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        self.cancel()
        self._tasks.shutdown(wait=False, cancel_futures=True)
        self._blocks.shutdown(wait=False, cancel_futures=True)
        # Do not ask the pools to wait: a pool that was interrupted while it started a thread does
        # not know that thread, but Python would wait for it at exit. The next transfer resumes.
        end = None if kind is None else time.monotonic() + SHUTDOWN_TIMEOUT_S
        while any(thread.name.startswith(self._name) for thread in threading.enumerate()):
            if end is not None and time.monotonic() > end:
                interrupted = kind is KeyboardInterrupt
                click.echo("interrupted" if interrupted else f"error: {error}", err=True)
                os._exit(ExitStatus.INTERRUPTED if interrupted else ExitStatus.ERROR)
            time.sleep(0.01)

    def cancel(self, reason: str = NOT_STARTED) -> None:
        """Start nothing new, and end every wait."""
        if not self._cancelled.is_set():
            self._reason = reason
            self._cancelled.set()

    def sleep(self, seconds: float) -> None:
        """Wait. Raises Cancelled if the transfer is cancelled meanwhile."""
        if self._cancelled.wait(seconds):
            raise Cancelled

    def check(self) -> None:
        """Raise Cancelled if the transfer was cancelled."""
        if self._cancelled.is_set():
            raise Cancelled

    def run_tasks(self, tasks: Sequence[Task]) -> list[FailedTransfer]:
        """Run all tasks and return the failed files in order. A fatal error skips the rest."""
        futures = [(task, self._tasks.submit(self._run, task)) for task in tasks]
        results = [(task.paths, _wait_for(future)) for task, future in futures]
        return [
            FailedTransfer(path, reason)
            for paths, reason in results
            if reason is not None
            for path in paths
        ]

    def run_blocks(self, blocks: Iterable[Callable[[], None]]) -> None:
        """Run the blocks of one task in parallel; raise the first error after all have ended."""
        waiting: set[Future[None]] = {self._blocks.submit(self._run_block, b) for b in blocks}
        error: BaseException | None = None
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                if not future.cancelled() and error is None:
                    error = future.exception()
            if error is not None:
                for future in waiting:
                    future.cancel()
        if error is not None:
            raise error

    def _run_block(self, block: Callable[[], None]) -> None:
        self.check()
        block()

    def _run(self, task: Task) -> str | None:
        """Run a task and return why it failed."""
        try:
            self.check()
            task.run()
            self._consecutive_failures = 0
            return None
        except Cancelled:
            return self._reason
        except TargetUnavailable as error:
            self._consecutive_failures += 1
            if self._consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
                self.cancel(f"gave up: {error.message}")
            return str(error)
        except RunnerError as error:
            return error.message
        except OSError as error:
            if error.errno in FATAL_ERRNOS:
                self.cancel(f"gave up: {error.strerror}")
            if not error.errno or not error.strerror:
                return str(error)
            return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _wait_for(future: Future[str | None]) -> str | None:
    """Return the result of ``future``.

    Waits in short intervals: Python loses a signal that arrives while the thread starts to wait
    (16% of them on a busy machine), until the wait is over.
    """
    while True:
        try:
            return future.result(POLL_INTERVAL_S)
        except TimeoutError:
            if future.done():
                return future.result()


class Progress:
    """Count bytes and files from any thread: a bar on a terminal, else a line every 10 seconds."""

    def __init__(
        self,
        cli: CliContext,
        verb: str,  # pulling, pushing
        files: int,
        size: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cli = cli
        self.verb = verb
        self.files, self.size = files, size
        self.done_files, self.done_size = 0, 0
        self.now = now
        self.started = self.last_line = now()
        self._lock = threading.Lock()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self.cli.is_terminal and self.files:
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
                console=self.cli.console(),
                transient=True,
            )
            self._task = self._bar.add_task(self._description(), total=self.size)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Return the seconds since the start, above 0."""
        return max(self.now() - self.started, 1e-6)

    def advance(self, size: int) -> None:
        """Add ``size`` bytes; a negative number takes them back."""
        with self._lock:
            self.done_size += size
            self._show()

    @contextmanager
    def counted(self) -> Iterator[Callable[[int], int]]:
        """Yield a function that adds bytes and returns their sum; an error takes them back."""
        total = 0

        def count(size: int) -> int:
            nonlocal total
            total += size
            self.advance(size)
            return total

        try:
            yield count
        except BaseException:
            self.advance(-total)
            raise

    def file_done(self) -> None:
        """Count a file that is complete."""
        with self._lock:
            self.done_files += 1
            self._show()

    def _show(self) -> None:
        if not self.files:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done_size, description=self._description())
        elif self.now() - self.last_line >= LINE_INTERVAL_S:
            self.last_line = self.now()
            done, total = byte_size(self.done_size), byte_size(self.size)
            rate = byte_size(int(self.done_size / self.seconds))
            self.cli.info(f"{self._description()}, {done} of {total}, {rate}/s")

    def _description(self) -> str:
        return f"{self.verb} {self.done_files:,} of {count(self.files, 'file')}"
