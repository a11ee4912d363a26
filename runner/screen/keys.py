"""Single keys from the terminal, without Enter and without an echo."""

from __future__ import annotations

import os
import select
import sys
import time
from types import TracebackType
from typing import Any


class Keys:
    """While entered, ``wait`` tells what was pressed. Where the system has no termios only time passes."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def __enter__(self) -> Keys:
        try:
            import termios
            import tty

            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)  # Ctrl-C stays a signal
        except (ImportError, OSError, ValueError):  # termios.error is an OSError only since 3.14
            self._before = None
        except Exception as error:
            if type(error).__name__ != "error":
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

    def wait(self, seconds: float) -> str:
        """The key pressed within ``seconds``; '' where there was none."""
        if self._before is None:
            time.sleep(seconds)
            return ""
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        if not ready:
            return ""
        pressed = os.read(sys.stdin.fileno(), 1).decode(errors="replace")
        if not pressed:  # the terminal is gone, and would be ready for ever
            self._before = None
        return pressed
