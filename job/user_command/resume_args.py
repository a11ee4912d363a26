"""The arguments that later attempts add to a command, and when."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from job.run_record import Attempt, RunRecord

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
    "last_whole.json",
}


def series_start(record: RunRecord, command: Sequence[str]) -> float:
    """Return when the current series of attempts with these very arguments started.

    In whole seconds since the epoch, as some volumes store times; infinity if this is the first.
    Files written earlier belong to another command, and its checkpoint must not be resumed.
    """
    before, since = record.attempts[:-1], math.inf
    while before and words_of(before[-1]) in (None, list(command)):
        since = before.pop().started
    return math.floor(since) if since < math.inf else since


def words_of(attempt: Attempt) -> list[str] | None:
    """Return the command's arguments in that attempt; None if the runner did not record them."""
    launched = attempt.launch.get("command")
    return list(launched["words"]) if isinstance(launched, dict) and "words" in launched else None


def words_to_resume(
    added: str, condition: str | None, folder: Path, places: Iterable[Path], since: float, out: Path
) -> list[str]:
    """Return the arguments of ``added``, as a shell splits them, if there is something to resume.

    That is a file written after ``since`` which matches ``condition``, a path or glob relative to
    ``folder`` with variables such as $OUT_DIR; without a condition, any file in ``places``.
    """
    if not added or since == math.inf:
        return []
    found = list(places) if condition is None else matches(condition, folder, out)
    if any(_written_since(since, path) for path in found):
        return shlex.split(added)
    if condition is not None and found:
        print(
            f"runner: {found[0]} is older than this run; starting without it",
            file=sys.stderr,
            flush=True,
        )
    return []


def resume_path(path: str, folder: Path, out: Path) -> Path:
    """Return the path as the command sees it: relative to ``folder``, with $OUT_DIR expanded."""
    return folder / os.path.expandvars(
        path.replace("$OUT_DIR", str(out)).replace("${OUT_DIR}", str(out))
    )


def matches(path: str, folder: Path, out: Path) -> list[Path]:
    """Return the file of that name, or the files that match it as a glob."""
    where = resume_path(path, folder, out)
    if where.exists():
        return [where]
    base = Path(where.anchor)
    return list(base.glob(str(where.relative_to(base))))


def _written_since(moment: float, place: Path) -> bool:
    if place.is_file():
        return place.stat().st_mtime >= moment
    for folder, _, names in os.walk(place):
        for name in names:
            path = Path(folder) / name
            if name in RECORDS or name.startswith("."):
                continue
            with suppress(OSError):  # a broken link, or deleted meanwhile
                if path.stat().st_mtime >= moment:
                    return True
    return False
