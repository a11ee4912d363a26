"""What a folder of this machine holds that a push may be about."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.cloud.volumes import RemoteEntry
from runner.sync.names import is_temporary


@dataclass(frozen=True)
class LocalFile:
    """A file here, and its ``path`` in the volume to be; ``mtime_ns`` in nanoseconds since the epoch."""

    path: str
    local: Path
    size: int
    mtime_ns: int

    @property
    def entry(self) -> RemoteEntry:
        """The same in the words of a listing."""
        return RemoteEntry(self.path, self.size, self.mtime_ns // 10**9, "file")


def list_local(source: Path, remote: str) -> tuple[list[LocalFile], list[str]]:
    """The files of ``source`` (a file or folder) as they would lie at ``remote``, and what is left out.

    A symbolic link to a file counts as that file; one to a folder is left out, since it may lead in a circle.
    """
    if source.is_file():
        return [_file(source, remote)], []
    found: list[LocalFile] = []
    left_out: list[str] = []
    for path in _walk(source, left_out):
        name = path.relative_to(source).as_posix()
        if is_temporary(name):
            continue
        if not path.is_file():
            left_out.append(f"{path} is left out: it is no file")
            continue
        found.append(_file(path, f"{remote}/{name}" if remote else name))
    return sorted(found, key=lambda file: file.path), left_out


def _walk(folder: Path, left_out: list[str]) -> Iterator[Path]:
    for here, folders, files in os.walk(folder):
        for name in folders:
            if (Path(here) / name).is_symlink():
                left_out.append(f"{Path(here) / name} is left out: it is a symbolic link to a folder")
        yield from (Path(here) / name for name in files)


def _file(path: Path, remote: str) -> LocalFile:
    status = path.stat()
    return LocalFile(remote, path, status.st_size, status.st_mtime_ns)
