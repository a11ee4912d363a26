"""A run's log on its volume: the end of it, the lines since a time, and new lines as they come."""

from __future__ import annotations

import calendar
import codecs
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from runner.target import RunSource, VolumeFiles

CHUNK_BYTES = 64 * 1024

TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")  # job/display.py writes it, in UTC


def tail(files: VolumeFiles, path: str, lines: int | None) -> tuple[str, int]:
    """Return the last ``lines`` of the file (None for all) and the offset of its end, in bytes."""
    end = files.size(path)
    if end is None:
        return "", 0
    if lines is None:
        return files.read(path, 0, end).decode(errors="replace"), end
    chunks, breaks, start = list[bytes](), 0, end
    while start and breaks <= lines:
        size = min(CHUNK_BYTES, start)
        start -= size
        chunks.append(files.read(path, start, size))
        breaks += chunks[-1].count(b"\n")
    last = b"".join(reversed(chunks)).splitlines(keepends=True)[-lines:] if lines else []
    return b"".join(last).decode(errors="replace"), end


def has_timestamps(text: str) -> bool:
    """Return True if a line begins with a time; the log of a user's command has none."""
    return any(TIMESTAMP.match(line) for line in text.splitlines())


def since(text: str, start: float) -> str:
    """Return the lines written at ``start``, in seconds since the epoch, or later.

    A line without a time has the time of the line before it.
    """
    lines_since, is_recent = [], False
    for line in text.splitlines(keepends=True):
        if TIMESTAMP.match(line):
            written = calendar.timegm(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S"))
            is_recent = written >= int(start)
        if is_recent:
            lines_since.append(line)
    return "".join(lines_since)


def follow(source: RunSource, run: str, start: int) -> Iterator[str]:
    """Yield text added after the offset ``start`` until the run has ended and its log is read."""
    files, path = source.files("checkpoints"), f"{run}/log.txt"
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while True:
        state = source.state(run)  # before reading, so that the last lines are read after the end
        while (files.size(path) or 0) > start:
            text = files.read(path, start, CHUNK_BYTES)
            if not text:
                break
            start += len(text)
            yield decoder.decode(text)
        if state is None or not state.alive:
            return
        time.sleep(source.poll_interval_s)


# A resumed run rewrites its metrics without the lines after its checkpoint, and the new file may
# have any length. So the last bytes of each poll are read again and compared.
OVERLAP_BYTES = 256

MAX_POLL_BYTES = 4 * 1024 * 1024  # per poll, so that a long file does not freeze the screen


@dataclass(frozen=True)
class NewLines:
    """Whole lines of one poll."""

    lines: tuple[bytes, ...] = ()
    restarted: bool = False  # the file was rewritten, and these are its first lines
    is_complete: bool = True  # the end of the file was reached


class TailReader:
    """Read ``path`` from its start, or only its last ``max_bytes``."""

    def __init__(self, files: VolumeFiles, path: str, max_bytes: int | None = None) -> None:
        self.files = files
        self.path = path
        self.max_bytes = max_bytes
        self._reset()

    def _reset(self) -> None:
        self._offset: int | None = None if self.max_bytes is not None else 0
        self._overlap = b""  # the bytes before the offset
        self._partial_line = b""

    def poll(self) -> NewLines:
        """Return the whole lines added since the last poll.

        Raises OSError if the volume does not answer; the next poll then returns them.
        """
        restarted = False
        text = self._read()
        if not text.startswith(self._overlap):
            self._reset()
            restarted = True
            text = self._read()
        new = text[len(self._overlap) :]
        if not new:
            return NewLines(restarted=restarted)
        is_complete = len(text) < len(self._overlap) + MAX_POLL_BYTES
        self._offset = (self._offset or 0) + len(new)
        self._overlap = (self._overlap + new)[-OVERLAP_BYTES:]
        *lines, self._partial_line = (self._partial_line + new).split(b"\n")
        return NewLines(tuple(lines), restarted, is_complete)

    def _read(self) -> bytes:
        """Return the overlap and at most MAX_POLL_BYTES after it."""
        try:
            if self._offset is None:
                size = self.files.size(self.path) or 0
                self._offset = max(0, size - (self.max_bytes or 0))
            start = self._offset - len(self._overlap)
            return self.files.read(self.path, start, len(self._overlap) + MAX_POLL_BYTES)
        except FileNotFoundError:
            return b""
