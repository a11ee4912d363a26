"""Run transfers in parallel, collect failures, and give up when nothing can succeed."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import click

from job.exit_status import ExitStatus
from runner.errors import RunnerError, TargetUnavailable

PARALLEL_FILES = 16
PARALLEL_BLOCKS = 16  # of 8 MiB: 128 MiB of memory at most
POLL_INTERVAL_S = 0.2
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
    """One transfer. ``path`` names it in messages."""

    path: str
    run: Callable[[], None]


@dataclass(frozen=True)
class FailedTransfer:
    """A file that was not transferred, and why."""

    path: str
    reason: str


class Workers:
    """Run tasks, and the blocks of large files, in two pools, so that no task waits for another."""

    def __init__(
        self, parallel_files: int = PARALLEL_FILES, parallel_blocks: int = PARALLEL_BLOCKS
    ) -> None:
        self._name = f"transfer-{id(self)}-"
        self._tasks = ThreadPoolExecutor(parallel_files, f"{self._name}file")
        self._blocks = ThreadPoolExecutor(parallel_blocks, f"{self._name}block")
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
        """Run all tasks and return the failures in order. A fatal error skips the rest."""
        futures = [(task, self._tasks.submit(self._run, task)) for task in tasks]
        results = [(task, _wait_for(future)) for task, future in futures]
        return [FailedTransfer(task.path, reason) for task, reason in results if reason is not None]

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
