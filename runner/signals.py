"""Ctrl-C, SIGTERM and SIGHUP while a job is followed: the first asks it to stop, the second ends it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType

SIGNALS = [signal.SIGINT, signal.SIGTERM]

if hasattr(signal, "SIGHUP"):
    SIGNALS.append(signal.SIGHUP)  # the terminal was closed


_kept: list[signal.Signals] = []

_before_keeping: dict[signal.Signals, object] = {}


def keep() -> None:
    """From here on a job is at work that nobody follows yet: a signal is kept, for ``Interrupts`` or ``release``.
    Without this a Ctrl-C in between would end the runner and leave the job alone."""
    for which in SIGNALS if not _before_keeping else []:
        _before_keeping[which] = signal.signal(
            which, lambda number, _: _kept.append(signal.Signals(number))
        )


def release() -> list[signal.Signals]:
    """No longer keep them; those that came."""
    while _before_keeping:
        which, before = _before_keeping.popitem()
        signal.signal(which, before)  # type: ignore[arg-type]  # what signal() itself returned
    kept = list(_kept)
    _kept.clear()
    return kept


class Interrupts:
    """While entered, ``first(signal)`` is called for the first signal and ``again()`` for each later one.

    The job must be out of reach of the terminal's own Ctrl-C, else it would get two.
    """

    def __init__(self, first: Callable[[signal.Signals], None], again: Callable[[], None]) -> None:
        self.first = first
        self.again = again
        self.count = 0
        self._before: dict[signal.Signals, object] = {}

    @property
    def killed(self) -> bool:
        """Whether it was ended by force."""
        return self.count > 1

    def __enter__(self) -> Interrupts:
        for which in SIGNALS:
            replaced = signal.signal(which, self._received)
            self._before[which] = _before_keeping.pop(which, replaced)
        for which in release():
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
        if self.count == 1:
            self.first(signal.Signals(number))
        else:
            self.again()
