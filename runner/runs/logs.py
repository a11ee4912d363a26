"""A run's log on its volume: the end of it, the lines since a time, and new lines as they come."""

from __future__ import annotations

import calendar
import codecs
import re
import time
from collections.abc import Callable, Iterator

from runner.target import VolumeFiles

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
    found, is_recent = [], False
    for line in text.splitlines(keepends=True):
        if TIMESTAMP.match(line):
            written = calendar.timegm(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S"))
            is_recent = written >= int(start)
        if is_recent:
            found.append(line)
    return "".join(found)


def follow(
    files: VolumeFiles, path: str, start: int, is_active: Callable[[], bool], interval_s: float
) -> Iterator[str]:
    """Yield text added after the offset ``start`` until the run has ended and its log is read."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while True:
        was_active = is_active()  # before reading, so that the last lines are read after the end
        while (files.size(path) or 0) > start:
            text = files.read(path, start, CHUNK_BYTES)
            if not text:
                break
            start += len(text)
            yield decoder.decode(text)
        if not was_active:
            return
        time.sleep(interval_s)
