"""File operations on the folder of a volume. Paths of clients never lead out of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from grpclib import GRPCError, Status
from modal_proto import api_pb2


def inside(root: Path, path: str) -> Path:
    """Return the path below `root`. Raises INVALID_ARGUMENT if it leads out of it."""
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", ".")]
    if ".." in parts:
        raise GRPCError(Status.INVALID_ARGUMENT, f"path {path!r} leaves the volume")
    return root.joinpath(*parts)


def existing(root: Path, path: str) -> Path:
    """Return the path below `root`. Raises NOT_FOUND if it does not exist."""
    target = inside(root, path)
    if not os.path.lexists(target):
        raise GRPCError(Status.NOT_FOUND, f"No such file or directory: {path}")
    return target


def entries(root: Path, path: str, recursive: bool) -> Iterator[api_pb2.FileEntry]:
    """Return the entry of a file, or the entries of a folder."""
    target = existing(root, path)
    if not target.is_dir() or target.is_symlink():
        yield _entry(root, target)
        return
    for child in sorted(target.iterdir()):
        yield _entry(root, child)
        if recursive and child.is_dir() and not child.is_symlink():
            yield from entries(root, str(child.relative_to(root)), recursive)


def check_writable(root: Path, paths: list[str], keep_existing: bool) -> None:
    """Raise Modal's error if an upload would overwrite a file or replace a folder."""
    for path in paths:
        target = inside(root, path)
        if target.is_dir():
            raise GRPCError(
                Status.INVALID_ARGUMENT, f"{path} is a directory, which a file can't replace"
            )
        if keep_existing and os.path.lexists(target):
            raise GRPCError(Status.ALREADY_EXISTS, f"{path} already exists")


def place(root: Path, path: str, written: Path, mode: int) -> None:
    """Move a complete file to its place in one step."""
    target = inside(root, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    written.chmod(mode & 0o7777 or 0o644)
    os.replace(written, target)


def remove(root: Path, path: str, recursive: bool) -> None:
    target = existing(root, path)
    if target.is_dir() and not target.is_symlink():
        if not recursive:
            raise GRPCError(Status.INVALID_ARGUMENT, f"{path} is a directory; pass recursive=True")
        shutil.rmtree(target)
    else:
        target.unlink()


def copy(root: Path, sources: list[str], destination: str, recursive: bool) -> None:
    """Copy like `cp`: into the destination if it is a folder, else over it."""
    target = inside(root, destination)
    if len(sources) > 1 and not target.is_dir():
        raise GRPCError(Status.INVALID_ARGUMENT, f"{destination} is not a directory")
    for source in sources:
        origin = existing(root, source)
        final = target / origin.name if target.is_dir() else target
        if origin.is_dir():
            if not recursive:
                raise GRPCError(
                    Status.INVALID_ARGUMENT, f"{source} is a directory; pass recursive=True"
                )
            shutil.copytree(origin, final, dirs_exist_ok=True)
        else:
            final.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin, final)


def _entry(root: Path, target: Path) -> api_pb2.FileEntry:
    status = target.lstat()
    kind = api_pb2.FileEntry.FILE
    if target.is_symlink():
        kind = api_pb2.FileEntry.SYMLINK
    elif target.is_dir():
        kind = api_pb2.FileEntry.DIRECTORY
    size = status.st_size if kind == api_pb2.FileEntry.FILE else 0
    return api_pb2.FileEntry(
        path=str(target.relative_to(root)), type=kind, mtime=int(status.st_mtime), size=size
    )
