"""Checkpoint folders of a run: their names, their integrity, and which ones to delete. No torch.

``step_00001000/`` is complete: it got this name after it was written. ``.partial_step_00001000/``
is not. ``latest`` names the newest. model/checkpoint.py writes and reads the folders, and the
runner transfers them.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from job.exit_status import ExitStatus, UserError
from job.files import (
    FULL_DISK_ERRNOS,
    free_bytes,
    fsync_file,
    fsync_folder,
    read_file,
    write_atomically,
)
from job.format import byte_size
from job.typed_json import read_object

STEP_FOLDER = re.compile(r"^step_(\d{8,})$")
PARTIAL = ".partial_"  # being written
DELETED = f"{PARTIAL}deleted_"  # being deleted
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
MANIFEST = "manifest.json"
TEMPORARY_FILE = re.compile(r"^\.(.+)\.\d+\.tmp$")  # of job/files.py, with the process's number
# The runner writes these without the run's lock, and keeps a temporary file for milliseconds.
UNLOCKED_FILES = ("launch.json", "exit_status", "cloud.json")
MIN_AGE_S = 1.0  # of one of their temporary files that a dead process must have left
LATEST = "latest"


class DiskFull(UserError):
    """The disk has too little space; the message says where and how much is needed."""

    status = ExitStatus.JOB_FAILED


def step_folder(run: Path, step: int) -> Path:
    """Return the folder for the checkpoint of ``step``."""
    return run / f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint's folder."""
    return int(folder.name.removeprefix("step_"))


def steps(run: Path) -> list[int]:
    """Return the steps with a complete folder, oldest first, without verifying the files."""
    if not run.is_dir():
        return []
    return sorted(int(m[1]) for folder in run.iterdir() if (m := STEP_FOLDER.match(folder.name)))


def point_latest(run: Path, step: int) -> None:
    """Make ``latest`` name the checkpoint of ``step``, which a kill after the rename prevented."""
    path, content = run / LATEST, f"{step_folder(run, step).name}\n".encode()
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)


@contextmanager
def new_checkpoint(run: Path, step: int, needed: int) -> Iterator[Path]:
    """Yield a folder for the files of a checkpoint (about ``needed`` bytes).

    The folder has a temporary name. After the block each file is fsynced and listed in a manifest,
    the folder is renamed, and ``latest`` is updated last. On failure, remove the folder and leave
    earlier checkpoints intact. Raises DiskFull.
    """
    final = step_folder(run, step)
    folder = run / f"{PARTIAL}{final.name}"
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed attempt
    try:
        folder.mkdir(parents=True)
        yield folder
        manifest = {}
        for file in sorted(folder.iterdir()):
            fsync_file(file)
            manifest[file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
        write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2))
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in FULL_DISK_ERRNOS:
            raise DiskFull(_disk_full_message(run, step, needed)) from None
        raise
    discard(final)  # a damaged one of the same step, which resuming skipped
    folder.rename(final)
    fsync_folder(run)
    point_latest(run, step)


def _disk_full_message(run: Path, step: int, needed: int) -> str:
    existing = steps(run)
    last = (
        f"{step_folder(run, existing[-1]).name} is the last intact one"
        if existing
        else "no earlier one exists"
    )
    oldest = f" (its oldest checkpoint is {step_folder(run, existing[0])})" if existing[1:] else ""
    return (
        f"the disk of {run} is full: the checkpoint of step {step} needs {byte_size(needed)}, "
        f"{byte_size(free_bytes(run))} are free; {last}. Free some space{oldest} and run "
        f"`runner resume {run.name}`"
    )


def prune(run: Path, keep_last: int, also: set[int]) -> None:
    """Delete all but the ``keep_last`` newest intact checkpoints and those in ``also``.

    Counts back from the checkpoint that ``latest`` names, which was just written. Later steps come
    from an earlier attempt: they are damaged, and must not push out the new ones.
    """
    newest = _latest_step(run)
    if newest is not None:
        _known_intact.add(_identity(step_folder(run, newest)))
    kept = 0
    for step in reversed(steps(run)):
        folder = step_folder(run, step)
        if newest is not None and step > newest:
            continue
        if kept < max(1, keep_last):
            kept += _is_intact(folder)
        elif step not in also:
            discard(folder)


def remove_leftovers(run: Path) -> None:
    """Delete unfinished checkpoints and temporary files of killed processes in ``run``.

    Call it while you hold the run's lock.
    """
    for folder in run.glob(f"{PARTIAL}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for path in (*run.glob(".*.tmp"), *run.glob("samples/.*.tmp")):
        with suppress(OSError):
            match = TEMPORARY_FILE.match(path.name)
            is_young = time.time() - path.stat().st_mtime < MIN_AGE_S
            if match and not (match[1] in UNLOCKED_FILES and is_young):
                path.unlink()


def discard(folder: Path) -> None:
    """Delete a checkpoint, if there is one. A kill in between leaves no folder with its name."""
    deleted = folder.with_name(f"{DELETED}{folder.name}")
    for path in (deleted, folder):
        if path.exists():
            with suppress(OSError):
                path.replace(deleted)
                shutil.rmtree(deleted, ignore_errors=True)


def find_damage(folder: Path) -> str:
    """Return the problem of a checkpoint, or '' if its files have their size and SHA-256."""
    try:
        manifest = read_object(read_file(folder / MANIFEST))
        expected = {name: (manifest[name]["bytes"], manifest[name]["sha256"]) for name in FILES}
    except (OSError, ValueError, LookupError, TypeError):
        return f"{MANIFEST} is missing or unreadable"
    for name, (size, digest) in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (actual := path.stat().st_size) != size:
            return f"{name} has {actual} bytes, expected {size}"
        if sha256(path) != digest:
            return f"{name} has changed since it was written (SHA-256)"
    return ""


def newest_intact(run: Path, report: Callable[[str], None]) -> Path | None:
    """Return the newest intact checkpoint, warning about damaged ones; None if none is intact."""
    for step in reversed(steps(run)):
        folder = step_folder(run, step)
        if not (damage := find_damage(folder)):
            return folder
        report(f"skipping a damaged checkpoint: {folder.name}: {damage}; trying the previous one")
    return None


# Hashing a large checkpoint takes seconds: each is verified once in a process.
_known_intact: set[tuple[Path, int]] = set()


def _is_intact(folder: Path) -> bool:
    identity = _identity(folder)
    if identity not in _known_intact and not find_damage(folder):
        _known_intact.add(identity)
    return identity in _known_intact


def _identity(folder: Path) -> tuple[Path, int]:
    try:
        return folder, (folder / MANIFEST).stat().st_mtime_ns
    except OSError:
        return folder, 0


def _latest_step(run: Path) -> int | None:
    """Return the step that ``latest`` names; None if it names no checkpoint."""
    try:
        match = STEP_FOLDER.match(read_file(run / LATEST).decode().strip())
    except (OSError, ValueError):
        return None
    return int(match[1]) if match and (run / match[0]).is_dir() else None


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
