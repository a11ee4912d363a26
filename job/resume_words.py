"""What is added to a command's line in the attempts after its first, and when."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from job.runs import RunRecord

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


def words_to_resume(
    added: str, condition: str | None, folder: Path, kept: Iterable[Path], record: RunRecord, out: Path
) -> list[str]:
    """The words of ``added``, as a shell splits them, where this is a later attempt and there is something to go
    on from: the file or glob ``condition``, seen from ``folder`` and with variables such as $OUT_DIR; without
    one, any file that was written in a kept folder or in OUT_DIR since the run began."""
    if not added or len(record.attempts) < 2:
        return []
    if condition is not None:
        found = is_there(condition, folder, out)
    else:
        found = any(_written_since(record.created, place) for place in [*kept, out])
    return shlex.split(added) if found else []


def resume_path(path: str, folder: Path, out: Path) -> Path:
    """The path as the command would see it: from ``folder``, with variables such as $OUT_DIR."""
    return folder / os.path.expandvars(path.replace("$OUT_DIR", str(out)).replace("${OUT_DIR}", str(out)))


def is_there(path: str, folder: Path, out: Path) -> bool:
    """Whether a file or glob matches."""
    where = resume_path(path, folder, out)
    if where.exists():
        return True
    base = Path(where.anchor)
    return any(True for _ in base.glob(str(where.relative_to(base))))


def _written_since(moment: float, place: Path) -> bool:
    for folder, _, names in os.walk(place):
        for name in names:
            path = Path(folder) / name
            if name not in RECORDS and not name.startswith(".") and path.stat().st_mtime > moment:
                return True
    return False
