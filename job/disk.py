"""Full disks: report which one is full and how much is free, and clean up."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from job.exit_status import ExitStatus, UserError
from job.format import byte_size
from job.paths import VolumePaths
from job.step_folders import step_folder, steps

FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(UserError):
    """The disk has too little space; the message says where and how much is needed."""

    status = ExitStatus.JOB_FAILED


def in_words(error: BaseException) -> str:
    """Return the error message; for a full disk, also name the disk and its free space."""
    if not isinstance(error, OSError) or error.errno not in FULL:
        return str(error)
    # An error without a file name comes from a volume: assume the fullest.
    where = Path(error.filename) if error.filename else min(_volumes(), key=free_bytes)
    return (
        f"{where}: {(error.strerror or 'the disk is full').lower()}: "
        f"{byte_size(free_bytes(where))} free; free space on that disk and run the same command "
        "again"
    )


@contextmanager
def whole_or_gone(run: Path, step: int, folder: Path, needed: int) -> Iterator[None]:
    """Write the checkpoint of ``step`` (about ``needed`` bytes) into the new ``folder``.

    On failure, remove the folder and leave earlier checkpoints intact. Raises DiskFull.
    """
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed attempt
    try:
        folder.mkdir(parents=True)
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise DiskFull(_no_room(run, step, needed)) from None
        raise


def _no_room(run: Path, step: int, needed: int) -> str:
    there = steps(run)
    last = (
        f"{step_folder(run, there[-1]).name} is the last intact one"
        if there
        else "there is no earlier one"
    )
    older = f" (its oldest checkpoint is {step_folder(run, there[0])})" if len(there) > 1 else ""
    return (
        f"the disk of {run} is full: the checkpoint of step {step} needs {byte_size(needed)}, "
        f"{byte_size(free_bytes(run))} are "
        f"free; {last}. Make room there{older} and type `runner resume {run.name}`"
    )


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of ``path``, which need not be there yet."""
    return shutil.disk_usage(nearest_there(path)).free


def nearest_there(path: Path) -> Path:
    """``path``, or the nearest folder above it that is there."""
    return next(each for each in (path, *path.parents) if each.exists())


def _volumes() -> list[Path]:
    here = VolumePaths.current()
    return [here.data, here.checkpoints, here.cache]
