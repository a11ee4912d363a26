"""Full disks: report which one is full and how much is free, and clean up."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from job.exit_status import ExitStatus, UserError
from job.files import fsync_file, fsync_folder, write_atomically
from job.format import byte_size
from job.paths import VolumePaths
from job.step_folders import (
    MANIFEST,
    PARTIAL,
    discard,
    point_latest,
    sha256,
    step_folder,
    steps,
)

FULL_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
DISK_ERRNOS = (*FULL_DISK_ERRNOS, errno.EIO, errno.EROFS)  # errors of a disk, not of a program


class DiskFull(UserError):
    """The disk has too little space; the message says where and how much is needed."""

    status = ExitStatus.JOB_FAILED


def describe_os_error(error: BaseException) -> str:
    """Return the error message; for a full disk, also name the disk and its free space."""
    if not isinstance(error, OSError) or error.errno not in FULL_DISK_ERRNOS:
        # A system's error names its file; others have a text of their own.
        if not isinstance(error, OSError) or not error.strerror or not error.filename:
            return str(error)
        denied = f"; check its rights: `ls -ld {error.filename}`" * (error.errno == errno.EACCES)
        return f"{error.filename}: {error.strerror.lower()}{denied}"
    # An error without a file name comes from a volume: assume the fullest.
    where = Path(error.filename) if error.filename else min(_volumes(), key=free_bytes)
    return (
        f"{where}: {(error.strerror or 'the disk is full').lower()}: "
        f"{byte_size(free_bytes(where))} free; free space on that disk and run the same command "
        "again"
    )


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
        f"{byte_size(free_bytes(run))} are "
        f"free; {last}. Free some space{oldest} and run `runner resume {run.name}`"
    )


def free_bytes(path: Path) -> int:
    """Return the free bytes on the disk of ``path``, which need not exist."""
    return shutil.disk_usage(nearest_existing(path)).free


def nearest_existing(path: Path) -> Path:
    """Return ``path``, or the nearest existing folder above it."""
    return next(each for each in (path, *path.parents) if each.exists())


def _volumes() -> list[Path]:
    volumes = VolumePaths.current()
    return [volumes.data, volumes.checkpoints, volumes.cache]
