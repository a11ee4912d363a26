"""Resume a command: the arguments that later attempts add, and a backup of its checkpoint.

Two commands of one folder persist to the same path by default, and each may overwrite the other's
checkpoint there. `Writers` tells which run wrote a file: the records of all runs contain the times
at which each was active and the paths that it writes.

Many programs overwrite their checkpoint in place and can be killed mid-write. While the command
runs, `CheckpointBackup` copies each new version of the file that --resume-if names once it is
complete, and a later attempt that finds the file truncated or missing restores the copy.
torch.save's files (a zip, whose directory comes last) and safetensors tell whether they are
complete; any other file counts as complete once it has not changed for a while.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import stat
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from job.files import fsync_file, temporary_name, write_atomically
from job.run_record import Attempt, EndReason, RunRecord, all_runs
from job.user_command import report


@dataclass(frozen=True)
class Writers:
    """The times at which this run and others could write; ``""`` is this run."""

    spans: tuple[tuple[float, float, str], ...]  # start, end, run

    def other_writer(self, path: Path) -> str:
        """Return the run that wrote ``path`` last; '' if it was this one."""
        written = path.stat().st_mtime
        is_coarse = written.is_integer()  # some volumes store whole seconds
        possible = [
            (start, run)
            for start, end, run in self.spans
            if (math.floor(start) if is_coarse else start) <= written <= end
        ]
        return max(possible, default=(0.0, ""))[1]


def find_writers(record: RunRecord, checkpoints: Path, condition: str | None) -> Writers:
    """Return the writers of the file ``condition`` (--resume-if), or of any persisted path."""
    places = _places(record.attempts[-1], record.name, condition)
    spans = [*_spans(record, "")]
    for folder, other in all_runs(checkpoints) if places else ():
        is_sharing = folder.name != record.name and any(
            mine.is_relative_to(theirs) or theirs.is_relative_to(mine)
            for theirs in (_all_places(other.attempts[-1], other.name) if other.attempts else ())
            for mine in places
        )
        if is_sharing:
            spans += _spans(other, folder.name)
    return Writers(tuple(spans))


def _spans(record: RunRecord, name: str) -> Iterator[tuple[float, float, str]]:
    ends = [attempt.started for attempt in record.attempts[1:]]
    for attempt, next_start in zip(record.attempts, [*ends, math.inf], strict=True):
        is_known = attempt.ended is not None and attempt.reason != EndReason.KILLED
        yield attempt.started, (attempt.ended or 0.0) if is_known else next_start, name


def _places(attempt: Attempt, run: str, condition: str | None) -> list[PurePosixPath]:
    """Return the locations of the file, as ``volume/path`` or the folder on the host."""
    persisted = dict(_persisted(attempt, run))
    if condition is None:
        return list(persisted.values())
    if "OUT_DIR" in condition:
        return []
    file = PurePosixPath(condition)
    inside = [place for path, place in persisted.items() if file.is_relative_to(path)]
    return inside or [place for place in _all_places(attempt, run) if place.is_absolute()]


def _all_places(attempt: Attempt, run: str) -> list[PurePosixPath]:
    folder = _command(attempt).get("folder")
    own = [PurePosixPath(folder)] if isinstance(folder, str) else []
    return [*own, *(place for _, place in _persisted(attempt, run))]


def _persisted(attempt: Attempt, run: str) -> Iterator[tuple[PurePosixPath, PurePosixPath]]:
    for option in _command(attempt).get("persist") or ():
        path, volume, location = map(str, option)
        yield PurePosixPath(path), PurePosixPath(volume, location.replace("{run}", run))


def _command(attempt: Attempt) -> dict[str, Any]:
    command = attempt.launch.get("command")
    return command if isinstance(command, dict) else {}


STEP = "{step}"

# The runner's own files in the run's folder: they do not show that the command wrote something.
RECORDS = {
    "run.json",
    "launch.json",
    "cloud.json",
    "exit_status",
    "heartbeat",
    "lock",
    "log.txt",
    "output.txt",
    "last_complete.json",
}


def series_start(record: RunRecord, command: Sequence[str]) -> float:
    """Return when the current series of attempts with these very arguments started.

    In whole seconds since the epoch, as some volumes store times; infinity if this is the first.
    Files written earlier belong to another command, and its checkpoint must not be resumed.
    """
    before, since = record.attempts[:-1], math.inf
    while before and recorded_argv(before[-1]) in (None, list(command)):
        since = before.pop().started
    return math.floor(since) if since < math.inf else since


def recorded_argv(attempt: Attempt) -> list[str] | None:
    """Return the command's arguments in that attempt; None if the runner did not record them."""
    words = _command(attempt).get("words")
    return None if words is None else list(words)


def resume_arguments(
    added: str,
    condition: str | None,
    folder: Path,
    places: Iterable[Path],
    since: float,
    out: Path,
    writers: Writers,
) -> list[str]:
    """Return the arguments of ``added``, as a shell splits them, if there is something to resume.

    That is a file that this run wrote after ``since`` and that matches ``condition``, a path or
    glob relative to ``folder`` with variables such as $OUT_DIR; without a condition, any file in
    ``places``. ``{step}`` in both is the highest number in the name of such a file.
    """
    if not added or since == math.inf:
        return []
    files = list(places) if condition is None else matches(condition, folder, out)
    if recent := [path for path in files if _written_since(since, path, writers)]:
        words = shlex.split(added)
        if condition is None or STEP not in condition:
            return words
        pattern = re.escape(str(resume_path(condition, folder, out)))
        pattern = pattern.replace(r"\*", ".*").replace(re.escape(STEP), r"(\d+)")
        steps = [match[1] for path in recent if (match := re.fullmatch(pattern, str(path)))]
        newest = max(steps, key=int, default=None)
        return [word.replace(STEP, newest) for word in words] if newest else []
    if condition is not None and files:
        other = writers.other_writer(files[0])
        problem = f"was written by run '{other}'" if other else "is older than this run"
        report(f"{files[0]} {problem}; starting without it")
    return []


def resume_path(path: str, folder: Path, out: Path) -> Path:
    """Return the path as the command sees it: relative to ``folder``, with $OUT_DIR expanded."""
    return folder / os.path.expandvars(expand_out_dir(path, out))


def expand_out_dir(text: str, out: Path) -> str:
    """Return the text with the run's folder for ``$OUT_DIR``: commands run without a shell."""
    return text.replace("${OUT_DIR}", str(out)).replace("$OUT_DIR", str(out))


def matches(path: str, folder: Path, out: Path) -> list[Path]:
    """Return the file of that name, or the files that match it as a glob."""
    where = resume_path(path.replace(STEP, "*"), folder, out)
    if where.exists():
        return [where]
    base = Path(where.anchor)
    return list(base.glob(str(where.relative_to(base))))


def _written_since(moment: float, place: Path, writers: Writers) -> bool:
    if place.is_file():
        return place.stat().st_mtime >= moment and not writers.other_writer(place)
    for folder, _, names in os.walk(place):
        for name in names:
            path = Path(folder) / name
            if name in RECORDS or name.startswith("."):
                continue
            with suppress(OSError):  # a broken link, or deleted meanwhile
                if path.stat().st_mtime >= moment and not writers.other_writer(path):
                    return True
    return False


FOLDER = "last_complete"  # in the run's folder

MARKER = "last_complete.json"  # written after each copy: it tells Modal's entry point to commit

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

    def restore(self, since: float, writers: Writers) -> None:
        """Before a later attempt: replace a truncated, missing or other run's file with the copy.

        A copy from before ``since`` (seconds since the epoch) belongs to another command.
        """
        if not self.copy.is_file() or self.copy.stat().st_mtime < since:
            return
        other = writers.other_writer(self.path) if self.path.exists() else ""
        if other or is_truncated(self.path) or not self.path.exists():
            _copy(self.copy, self.path)
            problem = f"was overwritten by run '{other}'" if other else "was truncated"
            report(f"{self.path.name} {problem}; restored its last complete copy")
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
            report(f"{self.path.name} was not backed up: {error}")
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


def _has_end_marker(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(2) == b"PK"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    try:
        shutil.copyfile(source, temporary)
        fsync_file(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
