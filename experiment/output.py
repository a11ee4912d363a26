"""What an experiment prints: where it would go anyway, and with the time of each line, in UTC, into log.txt."""

from __future__ import annotations

import io
import time
from typing import TextIO


class Tee(io.TextIOBase):
    """A text stream that is written to ``stream`` at once and to ``log`` line by line."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self.stream = stream
        self.log = log
        self.line = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a read-only property in the base class too
        return self.stream.encoding

    def write(self, text: str) -> int:
        """Hand ``text`` on; a line of the log ends with its newline."""
        self.stream.write(text)
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            self._note(line)
        return len(text)

    def flush(self) -> None:
        """Let readers see what was written."""
        self.stream.flush()
        self.log.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def finish(self) -> None:
        """Note a last line that has no newline."""
        if self.line:
            self._note(self.line)
            self.line = ""
        self.flush()

    def _note(self, line: str) -> None:
        # Of a progress bar, which begins its line again and again, the last state alone.
        shown = line.rstrip("\r").rpartition("\r")[2]
        self.log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} {shown}\n")
        self.log.flush()
