"""Atomic file writes (temporary name, fsync, rename), folder locks, and errors of the disk."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shlex
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from job.format import byte_size
from job.paths import VolumePaths

MISSING = "no such file"  # one of the problems of `file_problem`
FULL_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
DISK_ERRNOS = (*FULL_DISK_ERRNOS, errno.EIO, errno.EROFS)  # errors of a disk, not of a program


def write_atomically(path: Path, content: str | bytes, mode: int | None = None) -> None:
    """Write ``content`` so that ``path`` holds either its old content or all of the new.

    ``mode`` is that of the new file, by default the one that open() gives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        if mode is not None:
            temporary.touch(0o600)  # before it has content
            temporary.chmod(mode)
        with name_in_errors(path), temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # partial, on a full disk
        if error.filename == str(temporary):
            error.filename = str(path.parent if error.errno == errno.EACCES else path)
        raise
    fsync_folder(path.parent)


@contextmanager
def name_in_errors(path: Path) -> Iterator[Path]:
    """Add ``path`` to an OSError from the block, also if safetensors wrapped the system's error."""
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
def new_file(path: Path) -> Iterator[Path]:
    """Name ``path`` in errors of the block, and give the file the mode that open() gives.

    safetensors creates files that only their owner can read.
    """
    with name_in_errors(path):
        yield path
        opened = temporary_name(path)
        opened.touch()
        shutil.copymode(opened, path)
        opened.unlink()


def temporary_name(path: Path) -> Path:
    """Return the name of ``path`` while it is written; `remove_leftovers` finds it after a kill."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def fsync_folder(folder: Path) -> None:
    """Make the renames in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_problem(path: Path, allow_folder: bool = False) -> str:
    """Return why ``path`` cannot be read as a file, or as a folder if that is allowed; else ''.

    Opening a FIFO would wait for a writer.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "broken link" if path.is_symlink() else MISSING
    except (OSError, ValueError) as error:  # a zero byte in the name
        return (getattr(error, "strerror", None) or str(error)).lower()
    if not (stat.S_ISREG(mode) or (allow_folder and stat.S_ISDIR(mode))):
        return f"{kind_of_file(mode)}, not a regular file"
    needed = os.R_OK | (os.X_OK if stat.S_ISDIR(mode) else 0)
    return "" if os.access(path, needed) else "permission denied"


def open_at_once(path: str, flags: int) -> int:
    """Return the descriptor of an opened file; the opening does not wait for a FIFO's writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_file(path: Path, start: int = 0, length: int | None = None) -> bytes:
    """Return at most ``length`` bytes from ``start``; /dev/null is an empty file.

    Raises OSError, also for a FIFO, whose opening would wait for a writer.
    """
    with open(path, "rb", opener=open_at_once) as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISCHR(mode) and os.path.samestat(os.fstat(file.fileno()), os.stat(os.devnull)):
            return b""
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"{kind_of_file(mode)}, not a regular file", str(path))
        file.seek(start)
        return file.read(-1 if length is None else length)


def read_tail(path: Path, length: int) -> str:
    """Return the text of the last ``length`` bytes. Raises OSError."""
    return read_file(path, max(0, path.stat().st_size - length)).decode(errors="replace")


def read_utf8(path: Path) -> str:
    """Return the text of a file. Raises ValueError, whose message is the problem alone."""
    if problem := file_problem(path):
        raise ValueError(problem)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: {error.reason} at byte {error.start}") from None


def text_problem(path: Path) -> str:
    """Return why ``path`` cannot be read as UTF-8 text; '' if it can."""
    try:
        read_utf8(path)
    except ValueError as error:
        return str(error)
    return ""


def kind_of_file(mode: int) -> str:
    """Return what a file that is not a regular one is, by its ``st_mode``."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def fsync_file(path: Path) -> None:
    """Make the content of a file durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock, which ends with the process; yield False if another one has it."""
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


def describe_os_error(error: BaseException) -> str:
    """Return the error message; for a full disk, also name the disk and its free space."""
    if not isinstance(error, OSError) or error.errno not in FULL_DISK_ERRNOS:
        # A system's error names its file; others have a text of their own.
        if not isinstance(error, OSError) or not error.strerror or not error.filename:
            return str(error)
        name, reason = str(error.filename), error.strerror[0].lower() + error.strerror[1:]
        is_denied = error.errno == errno.EACCES
        advice = f"; check its rights: `ls -ld {shlex.quote(name)}`" if is_denied else ""
        return f"{name}: {reason}{advice}"
    # An error without a file name comes from a volume: assume the fullest.
    where = Path(error.filename) if error.filename else min(VolumePaths.current(), key=free_bytes)
    return (
        f"{where}: {(error.strerror or 'the disk is full').lower()}: "
        f"{byte_size(free_bytes(where))} free; free space on that disk and run the same command "
        "again"
    )


def free_bytes(path: Path) -> int:
    """Return the free bytes on the disk of ``path``, which need not exist."""
    return shutil.disk_usage(nearest_existing(path)).free


def nearest_existing(path: Path) -> Path:
    """Return ``path``, or the nearest existing folder above it."""
    return next(each for each in (path, *path.parents) if each.exists())
