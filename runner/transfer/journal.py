"""The journal: files that were verified to be the same on both sides, so they need no transfer.

One JSON line per file, appended after it was verified: its size and time on both sides. A file is
unchanged as long as these are. Losing the journal costs time, but never a file.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from job.files import write_atomically
from runner.targets.modal.volume import RemoteEntry

# A volume's times are whole seconds, and a container's writes become visible with its next commit,
# some seconds later. A file that was younger than this when it was listed may have changed again
# with the same size and time, so it is transferred again.
SETTLE_TIME_S = 10.0

# Rewrite the journal when it has this many lines more than twice its entries.
MAX_STALE_LINES = 1000


@dataclass(frozen=True)
class VerifiedEntry:
    """One file on both sides. The volume was listed at ``at`` (seconds since the epoch)."""

    path: str
    local: str
    size: int
    modified: int
    local_mtime_ns: int
    at: float


FIELDS = {field.name: field.type for field in fields(VerifiedEntry)}
TYPES: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float)}


class Journal:
    """The journal of one volume. Threads and processes may share it."""

    def __init__(self, file: Path, now: Callable[[], float] = time.time) -> None:
        self.file = file
        self.now = now
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, str], VerifiedEntry] = {}
        lines = self._read()
        if lines > 2 * len(self._entries) + MAX_STALE_LINES:
            text = "".join(json.dumps(asdict(entry)) + "\n" for entry in self._entries.values())
            with suppress(OSError):
                write_atomically(file, text)

    def record(self, remote: RemoteEntry, local: Path, listed: float) -> None:
        """Record that ``local`` has the content of ``remote``, which was listed at ``listed``.

        A journal that cannot be written is no reason to fail: the next transfer verifies again.
        """
        mtime_ns = local.stat().st_mtime_ns
        entry = VerifiedEntry(
            remote.path, str(local), remote.size, remote.modified, mtime_ns, listed
        )
        line = json.dumps(asdict(entry)) + "\n"
        with self._lock:
            self._entries[entry.path, entry.local] = entry
            with suppress(OSError):
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("ab") as stream:
                    stream.write(line.encode())

    def lookup(self, path: str, local: Path) -> VerifiedEntry | None:
        """Return the entry for both files if ``local`` has not changed since; else None."""
        entry = self._entries.get((path, str(local)))
        if entry is None:
            return None
        try:
            status = os.stat(local)
        except OSError:
            return None
        unchanged = status.st_size == entry.size and status.st_mtime_ns == entry.local_mtime_ns
        return entry if unchanged else None

    def is_unchanged(self, remote: RemoteEntry, local: Path, settled: bool = True) -> bool:
        """Return whether neither side changed since both were verified.

        With ``settled``, a change within the same second is excluded too.
        """
        entry = self.lookup(remote.path, local)
        if entry is None or (entry.size, entry.modified) != (remote.size, remote.modified):
            return False
        return not settled or is_settled(remote, entry.at)

    def _read(self) -> int:
        """Read the entries and return the number of lines."""
        try:
            lines = self.file.read_bytes().splitlines()
        except OSError:
            return 0
        for line in lines:
            entry = _parse(line)
            if entry is not None:  # else a killed process wrote half a line, or the disk lost it
                self._entries[entry.path, entry.local] = entry
        return len(lines)


def is_settled(entry: RemoteEntry, listed: float) -> bool:
    """Return whether another change would show another time."""
    return entry.modified + SETTLE_TIME_S < listed


def _parse(line: bytes) -> VerifiedEntry | None:
    try:
        tree = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(tree, dict) or tree.keys() != FIELDS.keys():
        return None
    if not all(isinstance(tree[name], TYPES[str(kind)]) for name, kind in FIELDS.items()):
        return None
    return VerifiedEntry(**tree)
