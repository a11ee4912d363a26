"""Signals while a job is followed: the first asks the job to stop, the second kills it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_held: list[signal.Signals] = []
_handlers_before: dict[signal.Signals, object] = {}


@contextmanager
def handled(handler: Callable[[int, FrameType | None], Any], *signals: int) -> Iterator[None]:
    """Handle the signals in the block, and restore their handlers after it."""
    before = {which: signal.signal(which, handler) for which in signals}
    try:
        yield
    finally:
        for which, old in before.items():
            signal.signal(which, old)


def hold_signals() -> None:
    """Hold signals from the start of a job until `SignalForwarder` or `release_signals` takes over.

    Without this, a Ctrl-C in between would end the runner and leave the job running.
    """
    for which in SIGNALS if not _handlers_before else ():
        _handlers_before[which] = signal.signal(
            which, lambda number, _: _held.append(signal.Signals(number))
        )


def release_signals() -> list[signal.Signals]:
    """Stop holding signals and return those that were held."""
    while _handlers_before:
        which, before = _handlers_before.popitem()
        signal.signal(which, before)  # type: ignore[arg-type]  # what signal() itself returned
    held = list(_held)
    _held.clear()
    return held


def press_ctrl_c(received: signal.Signals) -> str:
    """Return "press Ctrl-C", with "again" if that is the signal that was received."""
    return "press Ctrl-C again" if received == signal.SIGINT else "press Ctrl-C"


class SignalForwarder:
    """While entered, call ``first(signal)`` for the first signal and ``again()`` for each later
    one.

    The job must not be in the terminal's foreground group, or it would get each Ctrl-C twice.
    """

    def __init__(self, first: Callable[[signal.Signals], None], again: Callable[[], None]) -> None:
        self.first = first
        self.again = again
        self.count = 0
        self._before: dict[signal.Signals, object] = {}

    @property
    def killed(self) -> bool:
        """Return True if a second signal arrived."""
        return self.count > 1

    def __enter__(self) -> SignalForwarder:
        for which in SIGNALS:
            replaced = signal.signal(which, self._received)
            self._before[which] = _handlers_before.pop(which, replaced)
        for which in release_signals():
            self._received(which, None)
        return self

    def __exit__(self, *_: object) -> None:
        for which, before in self._before.items():
            signal.signal(which, before)  # type: ignore[arg-type]  # what signal() itself returned

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        # A message to a terminal that was closed must not end the runner before the job.
        with suppress(OSError, ValueError):
            if self.count == 1:
                self.first(signal.Signals(number))
            else:
                self.again()


class JobOutput(threading.Thread):
    """Prints the output of a job on another machine, until it ends or the user leaves it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.screen = threading.Lock()  # held while a question is asked: no output runs over it
        self.ended = threading.Event()  # the job is over
        self.has_left = False  # set while the screen is held: nothing more is printed

    def leave(self) -> None:
        """Print nothing more."""
        self.has_left = True

    def state(self, is_interrupted: bool) -> str:
        """Return a message about the job's state that is new; often ''."""
        return ""
