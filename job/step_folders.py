"""The checkpoints in a run's folder by their names: what is one, which is the newest, which may go.

``step_00001000/`` is complete, for it was renamed to this when it was; ``.partial_step_00001000/`` is not; ``latest`` names
the newest. model/checkpoint.py writes and reads them, runner/sync/ moves them.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

from job.files import write_atomically

STEP_FOLDER = re.compile(r"^step_(\d{8,})$")
PARTIAL = ".partial_"
MANIFEST = "manifest.json"
LATEST = "latest"


def step_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` is or will be."""
    return run / f"step_{step:08d}"


def steps(run: Path) -> list[int]:
    """Steps with a complete checkpoint folder, oldest first; whether they are sound is not looked at."""
    if not run.is_dir():
        return []
    return sorted(int(m[1]) for folder in run.iterdir() if (m := STEP_FOLDER.match(folder.name)))


def point_latest(run: Path, step: int) -> None:
    """Let `latest` name the checkpoint of ``step``; a kill between a rename and this leaves it behind."""
    path, name = run / LATEST, f"{step_folder(run, step).name}\n"
    if not path.exists() or path.read_text() != name:
        write_atomically(path, name)


def prune(run: Path, keep_last: int, also: set[int]) -> None:
    """Delete checkpoints but for the ``keep_last`` newest and the steps in ``also``."""
    for step in steps(run)[:-keep_last]:
        if step not in also:
            shutil.rmtree(step_folder(run, step), ignore_errors=True)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
