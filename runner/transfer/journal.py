"""What was seen to be the same here and in the volume, so that it need not be looked at again.

One JSON line for each file, appended when it was verified: the size and time of both sides. A file counts as
the same while neither side's size or time has changed. Losing the journal costs time and never a file.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from job.files import write_atomically
from runner.targets.modal.volume import RemoteEntry

# A volume's times are whole seconds, and a container's writes come to light with its next commit, some
# seconds later. So a file that was younger than this, in seconds, when it was listed may have changed again
# without another size or time: it is fetched once more.
SETTLED_SECONDS = 10.0


@dataclass(frozen=True)
class VerifiedEntry:
    """One file on both sides. ``at`` is when the volume was listed, seconds since the epoch."""

    path: str
    local: str
    size: int
    modified: int
    local_mtime_ns: int
    at: float


class Journal:
    """The journal of one volume. Threads may share it, and processes."""

    def __init__(self, file: Path, now: Callable[[], float] = time.time) -> None:
        self.file = file
        self.now = now
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], VerifiedEntry] = {}
        lines = self._read()
        if lines > 2 * len(self._seen) + 1000:
            text = "".join(json.dumps(asdict(seen)) + "\n" for seen in self._seen.values())
            write_atomically(file, text)

    def note(self, entry: RemoteEntry, local: Path, listed: float) -> None:
        """``local`` was verified to hold what ``entry`` says, of a listing that was asked for at ``listed``."""
        mtime_ns = local.stat().st_mtime_ns
        seen = VerifiedEntry(entry.path, str(local), entry.size, entry.modified, mtime_ns, listed)
        line = json.dumps(asdict(seen)) + "\n"
        with self._lock:
            self._seen[seen.path, seen.local] = seen
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab") as stream:
                stream.write(line.encode())

    def last(self, path: str, local: Path) -> VerifiedEntry | None:
        """What was noted of the two, if ``local`` is still as it was then."""
        seen = self._seen.get((path, str(local)))
        if seen is None:
            return None
        try:
            status = os.stat(local)
        except OSError:
            return None
        unchanged = status.st_size == seen.size and status.st_mtime_ns == seen.local_mtime_ns
        return seen if unchanged else None

    def is_same(self, entry: RemoteEntry, local: Path, settled: bool = True) -> bool:
        """Whether neither side has changed since they were the same; with ``settled`` also unnoticed."""
        seen = self.last(entry.path, local)
        if seen is None or (seen.size, seen.modified) != (entry.size, entry.modified):
            return False
        return not settled or is_settled(entry, seen.at)

    def _read(self) -> int:
        try:
            lines = self.file.read_bytes().splitlines()
        except OSError:
            return 0
        for line in lines:
            try:
                seen = VerifiedEntry(**json.loads(line))
            except (ValueError, TypeError):
                continue  # the last line of a process that was killed
            self._seen[seen.path, seen.local] = seen
        return len(lines)


def is_settled(entry: RemoteEntry, listed: float) -> bool:
    """Whether another change would show as another time."""
    return entry.modified + SETTLED_SECONDS < listed
