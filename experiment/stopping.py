"""``should_stop()``: SIGTERM and SIGINT as a question that a loop asks once a step.

A preemption, a time-out, a budget that is nearly spent, `runner stop` and Ctrl-C all come as one of these two
signals, early enough for a checkpoint. A file that asks nothing is interrupted at once, since nothing that it
does would be kept by waiting.
"""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class Stop:
    """What was received, and whether the code asks."""

    received: signal.Signals | None = None
    is_asked_for: bool = False  # the code has called should_stop()
    was_told: bool = False  # and has been told to stop
    listens: bool = False


STOP = Stop()


def should_stop() -> bool:
    """Whether to write a checkpoint and return now: True once the job was told to end.

    What ``train`` returns after that is no result: the run is unfinished, and the same command goes on with it.
    """
    listen()
    STOP.is_asked_for = True
    STOP.was_told = STOP.received is not None
    return STOP.was_told


def listen() -> None:
    """Take the two signals from now on. In another thread than the main one it changes nothing."""
    if not STOP.listens and threading.current_thread() is threading.main_thread():
        STOP.listens = True
        for which in SIGNALS:
            signal.signal(which, _receive)


def _receive(number: int, frame: FrameType | None) -> None:
    again = STOP.received is not None and number == signal.SIGINT
    STOP.received = signal.Signals(number)
    if again or not STOP.is_asked_for:
        raise KeyboardInterrupt
