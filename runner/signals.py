"""Signals while a job is followed: the first asks the job to stop, the second kills it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_held: list[signal.Signals] = []
_handlers_before: dict[signal.Signals, object] = {}


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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
