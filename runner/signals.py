"""Signals while a job is followed: the first asks the job to stop, the second kills it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_held: list[signal.Signals] = []
_handlers_before: dict[signal.Signals, object] = {}


@contextmanager
def signal_handler(
    handler: Callable[[int, FrameType | None], Any], *signals: int
) -> Iterator[None]:
    """Handle the signals in the block, and restore their handlers after it."""
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def hold_signals() -> None:
    """Hold signals from the start of a job until `SignalForwarder` or `release_signals` takes over.

    Without this, a Ctrl-C in between would end the runner and leave the job running.
    """
    for signum in SIGNALS if not _handlers_before else ():
        _handlers_before[signum] = signal.signal(
            signum, lambda number, _: _held.append(signal.Signals(number))
        )


def release_signals() -> list[signal.Signals]:
    """Stop holding signals and return those that were held."""
    while _handlers_before:
        number, before = _handlers_before.popitem()
        signal.signal(number, before)  # type: ignore[arg-type]  # what signal() itself returned
    held = list(_held)
    _held.clear()
    return held


def press_ctrl_c(received: signal.Signals) -> str:
    """Return "press Ctrl-C", with "again" if that is the signal that was received."""
    return "press Ctrl-C again" if received == signal.SIGINT else "press Ctrl-C"


class SignalForwarder:
    """While entered, call ``on_first(signal)`` once, and ``on_repeat()`` for later ones but SIGHUP.

    The job must not be in the terminal's foreground group, or it would get each Ctrl-C twice.
    """

    def __init__(
        self, on_first: Callable[[signal.Signals], None], on_repeat: Callable[[], None]
    ) -> None:
        self.on_first = on_first
        self.on_repeat = on_repeat
        self.count = 0
        self._before: dict[signal.Signals, object] = {}

    @property
    def killed(self) -> bool:
        """Return True if a second signal arrived."""
        return self.count > 1

    def __enter__(self) -> SignalForwarder:
        for number in SIGNALS:
            replaced = signal.signal(number, self._received)
            self._before[number] = _handlers_before.pop(number, replaced)
        for number in release_signals():
            self._received(number, None)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]  # what signal() itself returned

    def _received(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self.count:
            return  # a shell and the kernel may both send it when the terminal is closed
        self.count += 1
        # A message to a terminal that was closed must not end the runner before the job.
        with suppress(OSError, ValueError):
            if self.count == 1:
                self.on_first(signal.Signals(number))
            else:
                self.on_repeat()


class JobOutput(threading.Thread):
    """Prints the output of a job on another machine, until it ends or the user leaves it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.screen = threading.Lock()  # held while a question is asked: no output runs over it
        self.ended = threading.Event()  # the job is over
        self.has_left = False  # set while the screen is held: nothing more is printed

    def write(self, stream: TextIO, text: str) -> bool:
        """Print a part of the job's output; return False if the user has left the job."""
        with self.screen:
            if not self.has_left:
                stream.write(text)
                stream.flush()
            return not self.has_left

    def leave(self) -> None:
        """Print nothing more."""
        self.has_left = True

    def state(self, is_interrupted: bool) -> str:
        """Return a message about the job's state that is new; often ''."""
        return ""
