"""stdout of a job whose reader may leave first, as `| head -1` does: what is written then goes nowhere.

The job goes on to its end: a training whose sample nobody reads is finished all the same.
"""

from __future__ import annotations

import os
from typing import TextIO


class PatientStdout:
    """``stream``, which never raises BrokenPipeError; all else of it is as it was."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._give_up()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        """What Python still holds back, and all that follows, goes to the null device."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
