"""Connect this terminal to a process in a sandbox: raw mode, resized with the window, restored."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

# Modal ends a terminal that sends nothing for a while; its own client sends an empty message this
# often.
KEEPALIVE_INTERVAL_S = 5.0

READ_SIZE = 65536


def pump(process: Any) -> int:
    """Connect stdin, stdout and stderr without a terminal; return the process's exit status."""
    errors = threading.Thread(target=_copy, args=(process.stderr, 2), daemon=True)
    inputs = threading.Thread(target=_feed, args=(process,), daemon=True)
    errors.start()
    inputs.start()
    _copy(process.stdout, 1)
    errors.join()
    return int(process.wait())


def attach(process: Any, resize: Callable[[int, int], None]) -> int:
    """Connect the terminal until ``process`` ends. ``resize`` gets rows and columns."""
    wake_read, wake_write = os.pipe()
    changes = threading.Event()
    ended = threading.Event()

    def read_output() -> None:
        try:
            _copy(process.stdout, 1)
        finally:
            ended.set()
            changes.set()
            os.write(wake_write, b".")

    def follow_size() -> None:
        while changes.wait() and not ended.is_set():
            changes.clear()
            size = os.get_terminal_size(0)
            resize(size.lines, size.columns)

    output = threading.Thread(target=read_output, daemon=True)
    sizes = threading.Thread(target=follow_size, daemon=True)
    with _raw(), _on_resize(changes.set):
        output.start()
        sizes.start()
        while not ended.is_set():
            readable, _, _ = select.select([0, wake_read], [], [], KEEPALIVE_INTERVAL_S)
            keys = os.read(0, 4096) if 0 in readable else b""
            if wake_read in readable or (0 in readable and not keys):
                break
            with suppress(Exception):  # it has just ended; its output shows how
                process.stdin.write(keys)
                process.stdin.drain()
    if not ended.is_set():  # this terminal was closed
        return 128 + signal.SIGHUP
    output.join()
    return int(process.wait())


def _copy(stream: Any, descriptor: int) -> None:
    for chunk in stream:
        content = chunk if isinstance(chunk, bytes) else chunk.encode()
        while content:
            content = content[os.write(descriptor, content) :]


def _feed(process: Any) -> None:
    with suppress(Exception):
        while content := os.read(sys.stdin.fileno(), READ_SIZE):
            process.stdin.write(content)
            process.stdin.drain()
    with suppress(Exception):
        process.stdin.write_eof()
        process.stdin.drain()


@contextmanager
def _raw() -> Iterator[None]:
    import termios
    import tty

    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextmanager
def _on_resize(changed: Callable[[], None]) -> Iterator[None]:
    before = signal.signal(signal.SIGWINCH, lambda *_: changed())
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
