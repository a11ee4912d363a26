"""What is added to a command's line in the attempts after its first, and when."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from job.run_record import Attempt, RunRecord

# Ours, in the run's folder: they do not tell that the command wrote something.
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


def begun(record: RunRecord, command: Sequence[str]) -> float:
    """When an attempt before this one first had these very words, with none of other words since: in whole seconds
    since the epoch, as some volumes keep them; infinity where there is none. What was written before that is of
    another command, and its checkpoint is not this one's to go on from."""
    before, since = record.attempts[:-1], math.inf
    while before and words_of(before[-1]) in (None, list(command)):
        since = before.pop().started
    return math.floor(since) if since < math.inf else since


def words_of(attempt: Attempt) -> list[str] | None:
    """The command's words in that attempt; None where the runner did not note them."""
    launched = attempt.launch.get("command")
    return list(launched["words"]) if isinstance(launched, dict) and "words" in launched else None


def words_to_resume(
    added: str, condition: str | None, folder: Path, places: Iterable[Path], since: float, out: Path
) -> list[str]:
    """The words of ``added``, as a shell splits them, where there is something to go on from that was written after
    ``since``: the file or glob ``condition``, seen from ``folder`` and with variables such as $OUT_DIR; without
    one, any file in ``places``."""
    if not added or since == math.inf:
        return []
    found = list(places) if condition is None else matches(condition, folder, out)
    if any(_written_since(since, path) for path in found):
        return shlex.split(added)
    if condition is not None and found:
        print(
            f"runner: {found[0]} is older than this run: it does not go on from it",
            file=sys.stderr,
            flush=True,
        )
    return []


def resume_path(path: str, folder: Path, out: Path) -> Path:
    """The path as the command would see it: from ``folder``, with variables such as $OUT_DIR."""
    return folder / os.path.expandvars(
        path.replace("$OUT_DIR", str(out)).replace("${OUT_DIR}", str(out))
    )


def matches(path: str, folder: Path, out: Path) -> list[Path]:
    """The file of that name, or those that it matches as a glob."""
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
            with suppress(OSError):  # a link that leads nowhere, or what was deleted since
                if path.stat().st_mtime >= moment:
                    return True
    return False
