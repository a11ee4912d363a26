"""``should_stop()``: turn SIGTERM, SIGINT and SIGHUP into a question that a loop asks every step.

A preemption, a time limit, a budget that is nearly spent, `runner stop` and Ctrl-C all arrive as
one of these signals, early enough to write a checkpoint. A file that never calls should_stop() is
interrupted at once: waiting would save nothing.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass
class StopRequest:
    """The signal that this process received, and the response of the user's code."""

    signal: signal.Signals | None = None
    is_polled: bool = False  # the code calls should_stop()
    was_reported: bool = False  # should_stop() returned True
    is_listening: bool = False
    may_interrupt: bool = True  # the signal may raise KeyboardInterrupt


STOP = StopRequest()


def should_stop() -> bool:
    """Return True after the job was told to stop: write a checkpoint and return.

    The run is then unfinished, whatever ``train`` returns, and the same command resumes it.
    """
    listen()
    STOP.is_polled = True
    STOP.was_reported = STOP.signal is not None
    return STOP.was_reported


def listen() -> None:
    """Handle the signals from now on. Does nothing outside the main thread."""
    if STOP.is_listening or threading.current_thread() is not threading.main_thread():
        return
    STOP.is_listening = True
    for number in SIGNALS:
        # Under nohup SIGHUP is ignored, and must stay so.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _receive)


@contextmanager
def interruptible() -> Iterator[None]:
    """Allow KeyboardInterrupt in this block only, so that no signal interrupts the bookkeeping."""
    STOP.may_interrupt = True
    try:
        if STOP.signal is not None:
            raise KeyboardInterrupt
        yield
    finally:
        STOP.may_interrupt = False


def _receive(number: int, frame: FrameType | None) -> None:
    is_second_interrupt = STOP.signal is not None and number == signal.SIGINT
    STOP.signal = signal.Signals(number)
    if STOP.may_interrupt and (is_second_interrupt or not STOP.is_polled):
        raise KeyboardInterrupt
