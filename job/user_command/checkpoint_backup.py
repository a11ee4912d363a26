"""Back up the checkpoint that a command resumes from.

Many programs overwrite their checkpoint in place and can be killed mid-write. While the command
runs, each new version of the file that --resume-if names is copied once it is complete. If a later
attempt finds the file truncated or missing, it restores the copy. torch.save's files (a zip, whose
directory comes last) and safetensors tell whether they are complete; any other file counts as
complete once it has not changed for a while.
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

MARKER = "last_whole.json"  # written after each copy: it tells Modal's entry point to commit

SETTLE_S = 2.0  # without a change

MAX_HEADER_BYTES = 100_000_000  # of a .safetensors: the format's own limit

HOLD_TIMEOUT_S = 10.0  # to hold a signal during a write; a preemption leaves 24 s


def is_truncated(path: Path) -> bool:
    """Return True if the file is incomplete, as far as its format tells; an empty file is."""
    try:
        if path.is_dir():
            return False
        with path.open("rb") as file:
            start = file.read(8)
            if path.suffix == ".safetensors":
                size, length = path.stat().st_size, int.from_bytes(start, "little")
                if length > min(size, MAX_HEADER_BYTES):
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
    """The file ``path`` and its copy in ``out``, the run's folder."""

    def __init__(self, path: Path, out: Path) -> None:
        self.path, self.out = path, out
        self.copy = out / FOLDER / path.name
        self._copied = self._stamp()

    def restore(self, since: float) -> None:
        """Before a later attempt: replace a truncated or missing file with the copy.

        A copy from before ``since`` (seconds since the epoch) belongs to another command.
        """
        ours = self.copy.is_file() and self.copy.stat().st_mtime >= since
        if ours and (is_truncated(self.path) or not self.path.exists()):
            _copy(self.copy, self.path)
            self._say("was truncated; restored its last complete copy")
        self._copied = self._stamp()

    def poll(self) -> None:
        """Copy a new version once it is complete; call it every second or so."""
        stamp = self._stamp()
        if stamp is None or stamp == self._copied or is_truncated(self.path):
            return
        try:
            if not _has_end_marker(self.path) and time.time() - stamp[0] / 1e9 < SETTLE_S:
                return
            _copy(self.path, self.copy)
            if self._stamp() != stamp or is_truncated(self.copy):
                self.copy.unlink()  # it was being written again; the next poll copies it
                return
            note = {"file": self.path.name, "bytes": stamp[1], "changed": stamp[0] / 1e9}
            write_atomically(self.out / MARKER, json.dumps(note) + "\n")
        except FileNotFoundError:  # the command has deleted it since
            return
        except OSError as error:  # a full disk must not end the command
            self._say(f"was not backed up: {error}")
        self._copied = stamp

    def wait_for_write(self) -> None:
        """Wait for a running write to finish, at most HOLD_TIMEOUT_S, before a signal is sent."""
        end = time.monotonic() + HOLD_TIMEOUT_S
        while is_truncated(self.path) and time.monotonic() < end:
            time.sleep(0.05)

    def _stamp(self) -> tuple[int, int] | None:
        """Return when the file was written (ns) and its size; None if it does not exist."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return status.st_mtime_ns, status.st_size

    def _say(self, words: str) -> None:
        print(f"runner: {self.path.name} {words}", file=sys.stderr, flush=True)


def _has_end_marker(path: Path) -> bool:
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
