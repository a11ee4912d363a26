"""Transfers in parallel: what runs, what failed, and when to give up."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType

import click

from job.exit_status import ExitStatus
from runner.errors import ModalUnavailable, RunnerError

FILES_AT_ONCE = 16

BLOCKS_AT_ONCE = 16  # of 8 MiB: 128 MiB of memory at most

LOOK_SECONDS = 0.2  # within which Ctrl-C is seen, whenever it came

LAST_BLOCKS_SECONDS = 3.0  # that an interrupted transfer waits for what is on its way

# So many transfers in a row that end with no answer, each after its own patience: the network is gone.
GIVE_UP_AFTER = 4

NOT_ANY_FILES_FAULT = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE}


class Cancelled(Exception):
    """The transfer as a whole ends; this file is not done."""


@dataclass(frozen=True)
class Task:
    """One transfer. ``path`` names it in messages."""

    path: str
    run: Callable[[], None]


@dataclass(frozen=True)
class FailedTransfer:
    """What was not transferred, and why."""

    path: str
    why: str


class Workers:
    """Runs tasks, and the blocks of a large file, each in a pool of its own: no task waits for another."""

    def __init__(
        self, files_at_once: int = FILES_AT_ONCE, blocks_at_once: int = BLOCKS_AT_ONCE
    ) -> None:
        self._name = f"transfer-{id(self)}-"
        self._tasks = ThreadPoolExecutor(files_at_once, f"{self._name}file")
        self._blocks = ThreadPoolExecutor(blocks_at_once, f"{self._name}block")
        self._cancelled = threading.Event()
        self._in_a_row = 0
        self._reason = "it was not begun"

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()
        self._tasks.shutdown(wait=False, cancel_futures=True)
        self._blocks.shutdown(wait=False, cancel_futures=True)
        # The pools are not asked to wait: an interrupt while one starts a thread leaves it unknown to the pool,
        # and Python would wait for it at its end. What is half is continued next time, so nothing is lost.
        end = None if kind is None else time.monotonic() + LAST_BLOCKS_SECONDS
        while any(thread.name.startswith(self._name) for thread in threading.enumerate()):
            if end is not None and time.monotonic() > end:
                click.echo(
                    "interrupted" if kind is KeyboardInterrupt else f"error: {error}", err=True
                )
                os._exit(ExitStatus.INTERRUPTED if kind is KeyboardInterrupt else ExitStatus.ERROR)
            time.sleep(0.01)

    def cancel(self, reason: str = "it was not begun") -> None:
        """Let nothing new begin, and what waits end."""
        if not self._cancelled.is_set():
            self._reason = reason
            self._cancelled.set()

    def sleep(self, seconds: float) -> None:
        """Wait, unless it is cancelled meanwhile: then raise Cancelled."""
        if self._cancelled.wait(seconds):
            raise Cancelled

    def check(self) -> None:
        """Raise Cancelled where nothing new should begin."""
        if self._cancelled.is_set():
            raise Cancelled

    def each(self, tasks: Sequence[Task]) -> list[FailedTransfer]:
        """Run all of them; what failed, in their order. An error that concerns them all ends the rest."""
        futures = [(task, self._tasks.submit(self._run, task)) for task in tasks]
        missing = [(task, _result(future)) for task, future in futures]
        return [FailedTransfer(task.path, why) for task, why in missing if why is not None]

    def blocks(self, work: Iterable[Callable[[], None]]) -> None:
        """Run the pieces of one task in parallel. The first error is raised, when none is at work any more."""
        waiting: set[Future[None]] = {self._blocks.submit(self._piece, piece) for piece in work}
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

    def _piece(self, piece: Callable[[], None]) -> None:
        self.check()
        piece()

    def _run(self, task: Task) -> str | None:
        try:
            self.check()
            task.run()
            self._in_a_row = 0
            return None
        except Cancelled:
            return self._reason
        except ModalUnavailable as error:
            self._in_a_row += 1
            if self._in_a_row >= GIVE_UP_AFTER:
                self.cancel("given up: Modal does not answer")
            return str(error)
        except RunnerError as error:
            return error.message
        except OSError as error:
            if error.errno in NOT_ANY_FILES_FAULT:
                self.cancel(f"given up: {error.strerror}")
            return error.strerror if error.errno and error.strerror else str(error)


def _result(future: Future[str | None]) -> str | None:
    """Python loses a signal that comes while the thread begins to wait (16 % of them on a busy machine), until
    the wait is over: so none is long."""
    while True:
        try:
            return future.result(LOOK_SECONDS)
        except TimeoutError:
            if future.done():
                return future.result()
