"""Files that are never half-written: temporary name, fsync, rename; and folders that one process alone fills."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` so that ``path`` holds either what it held before or all of the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with naming(path), temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # half a file on a full disk
        raise
    fsync_folder(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[Path]:
    """An OSError from within names ``path``: a write or an fsync knows of no file, and safetensors' error holds the
    system's as words."""
    try:
        yield path
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """For what a library writes at ``path``: as ``naming``, and with the mode that open() gives. safetensors writes
    files that nobody but their owner can read."""
    with naming(path):
        yield path
        opened = _beside(path)
        opened.touch()
        shutil.copymode(opened, path)
        opened.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def fsync_folder(folder: Path) -> None:
    """Make the renames in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make the content of a file written elsewhere durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock, which the system drops with the process; False where another process has it."""
    import fcntl  # not everywhere where this module is read

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
    except BlockingIOError:
        alone = False
    except OSError:
        alone = True  # a file system without locks
    try:
        yield alone
    finally:
        os.close(descriptor)
