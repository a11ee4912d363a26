"""A disk that is full: which one, how much is free and how much is needed; and nothing half-written that keeps it full."""

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
    """There is no room for what a job must keep; the text says where, and how much it takes."""

    status = ExitStatus.JOB_FAILED


def in_words(error: BaseException) -> str:
    """The error for a person; of a full disk also which one it is, and what is free on it."""
    if not isinstance(error, OSError) or error.errno not in FULL:
        return str(error)
    # What names no file is one of the volumes': the fullest.
    where = Path(error.filename) if error.filename else min(_volumes(), key=free_bytes)
    return (
        f"{where}: {(error.strerror or 'the disk is full').lower()}: {byte_size(free_bytes(where))} are free there; make "
        "room on that disk and type the same again"
    )


@contextmanager
def whole_or_gone(run: Path, step: int, folder: Path, needed: int) -> Iterator[None]:
    """Fill the new ``folder`` with the checkpoint of ``step``, of about ``needed`` bytes. Where that fails, nothing of it
    stays, and the checkpoints before it do; a full disk is a DiskFull."""
    shutil.rmtree(folder, ignore_errors=True)  # what a killed attempt left
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
        f"{step_folder(run, there[-1]).name} is the last good one"
        if there
        else "there is none before it"
    )
    older = f" (its oldest checkpoint is {step_folder(run, there[0])})" if len(there) > 1 else ""
    return (
        f"the disk of {run} is full: the checkpoint of step {step} needs {byte_size(needed)}, {byte_size(free_bytes(run))} are "
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
