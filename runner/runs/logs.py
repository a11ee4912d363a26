"""A run's log, read from its volume: the end of it, and then what is added."""

from __future__ import annotations

import calendar
import codecs
import re
import time
from collections.abc import Callable, Iterator

from runner.target import VolumeFiles

CHUNK = 64 * 1024

STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")  # job/display.py begins each line with it


def tail(files: VolumeFiles, path: str, lines: int | None) -> tuple[str, int]:
    """The last ``lines`` of the file (None: all) and the offset of its end, in bytes."""
    end = files.size(path)
    if end is None:
        return "", 0
    if lines is None:
        return files.read(path, 0, end).decode(errors="replace"), end
    chunks, breaks, start = list[bytes](), 0, end
    while start and breaks <= lines:
        step = min(CHUNK, start)
        start -= step
        chunks.append(files.read(path, start, step))
        breaks += chunks[-1].count(b"\n")
    kept = b"".join(reversed(chunks)).splitlines(keepends=True)[-lines:] if lines else []
    return b"".join(kept).decode(errors="replace"), end


def has_times(text: str) -> bool:
    """Whether a line of it says when it was written: a command's own log does not."""
    return any(STAMP.match(line) for line in text.splitlines())


def since(text: str, start: float) -> str:
    """The lines written at ``start`` (seconds since the epoch) or later; a log's times are in UTC.

    A line without a time belongs to the one before it.
    """
    kept, keep = [], False
    for line in text.splitlines(keepends=True):
        if STAMP.match(line):
            moment = time.strptime(line[:19], "%Y-%m-%d %H:%M:%S")
            keep = calendar.timegm(moment) >= int(start)
        if keep:
            kept.append(line)
    return "".join(kept)


def follow(
    files: VolumeFiles, path: str, start: int, alive: Callable[[], bool], pause: float
) -> Iterator[str]:
    """What is added behind ``start``, until the run is no longer alive and its log is read to the end.

    ``pause`` is in seconds, between two looks.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while True:
        lives = alive()  # asked before reading: what it wrote last is read after it ended
        while (files.size(path) or 0) > start:
            text = files.read(path, start, CHUNK)
            if not text:
                break
            start += len(text)
            yield decoder.decode(text)
        if not lives:
            return
        time.sleep(pause)
