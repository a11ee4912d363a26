"""The checkpoint that a command goes on from, kept whole: many programs write it in place, and may be ended amid.

While the command runs, each new version of the file that --resume-if names is copied once it is complete; where a
later attempt finds the file torn or gone, the copy takes its place. Complete can be told of torch.save's files (a
zip, whose directory comes last) and of safetensors; any other file counts as complete once it has rested.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import time
import zipfile
from pathlib import Path

from job.files import fsync_file, write_atomically

FOLDER = "last_whole"  # in the run's folder

MARKER = (
    "last_whole.json"  # beside it, written after each copy: in the cloud that is when to commit
)

REST = 2.0  # seconds without a change

HEADER = 100_000_000  # bytes, at most: the format's own limit for the header of a .safetensors

HOLD = 10.0  # seconds that a signal is held back while the file is being written; a preemption leaves 24


def is_truncated(path: Path) -> bool:
    """Whether the file breaks off, as far as its kind tells; an empty one does. A folder has no end."""
    try:
        if path.is_dir():
            return False
        with path.open("rb") as file:
            start = file.read(8)
            if path.suffix == ".safetensors":
                size, length = path.stat().st_size, int.from_bytes(start, "little")
                if length > min(size, HEADER):
                    return True
                tensors = json.loads(file.read(length))
                ends = [
                    t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"
                ]
                return size < 8 + length + max(ends, default=0)
        return not start or (start.startswith(b"PK") and not zipfile.is_zipfile(path))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return True


class CheckpointBackup:
    """``path`` and its copy in ``out``, the run's folder."""

    def __init__(self, path: Path, out: Path) -> None:
        self.path, self.out = path, out
        self.copy = out / FOLDER / path.name
        self._copied = self._stamp()

    def restore(self, since: float) -> None:
        """Before a later attempt: put the copy in the place of what is torn or gone, and say so. One from before
        ``since``, seconds since the epoch, is of another command."""
        ours = self.copy.is_file() and self.copy.stat().st_mtime >= since
        if ours and (is_truncated(self.path) or not self.path.exists()):
            _copy(self.copy, self.path)
            self._say("was not written to its end; its last whole copy is in its place")
        self._copied = self._stamp()

    def look(self) -> None:
        """While it runs, every second or so: copy what is new and complete."""
        stamp = self._stamp()
        if stamp is None or stamp == self._copied or is_truncated(self.path):
            return
        try:
            if not _tells_its_end(self.path) and time.time() - stamp[0] / 1e9 < REST:
                return
            _copy(self.path, self.copy)
            if self._stamp() != stamp or is_truncated(self.copy):
                self.copy.unlink()  # it was being written again; the next look finds it
                return
            note = {"file": self.path.name, "bytes": stamp[1], "changed": stamp[0] / 1e9}
            write_atomically(self.out / MARKER, json.dumps(note) + "\n")
        except FileNotFoundError:  # the command has deleted it since
            return
        except OSError as error:  # a full disk must not end the command
            self._say(f"was not copied: {error}")
        self._copied = stamp

    def wait_for_write(self) -> None:
        """Before a signal is passed on: let a write that is under way come to its end, within HOLD seconds."""
        end = time.monotonic() + HOLD
        while is_truncated(self.path) and time.monotonic() < end:
            time.sleep(0.05)

    def _stamp(self) -> tuple[int, int] | None:
        """When the file was written, and its bytes; None where there is no file."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return status.st_mtime_ns, status.st_size

    def _say(self, words: str) -> None:
        print(f"runner: {self.path.name} {words}", file=sys.stderr, flush=True)


def _tells_its_end(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(2) == b"PK"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.copyfile(source, temporary)
        fsync_file(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
