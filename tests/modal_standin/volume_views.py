"""A container's view of a volume: its folder, or a copy that a commit writes back."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from .ids import new_id

Stamp = tuple[int, int, int]  # size in bytes, time of change in nanoseconds, inode


@dataclass
class View:
    """The folder mounted at `target`. If it is the volume's own, commits do nothing."""

    volume_id: str
    volume: Path
    folder: Path
    target: str
    read_only: bool
    known: dict[str, Stamp] = field(default_factory=dict)

    @property
    def is_copy(self) -> bool:
        return self.folder != self.volume

    def commit(self, scratch: Path) -> None:
        """Write back changes since the last commit or reload; the last writer wins."""
        if not self.is_copy or self.read_only:
            return
        now = _stamps(self.folder)
        for name in sorted(now):
            if self.known.get(name) != now[name]:
                _replace(self.folder / name, self.volume / name, scratch)
        for name in sorted(set(self.known) - set(now), reverse=True):
            _remove(self.volume / name)
        for parent, names, _ in os.walk(self.folder):  # unlike rglob, it passes over deleted ones
            for folder in (Path(parent, name) for name in names):
                if not folder.is_symlink():
                    place = self.volume / folder.relative_to(self.folder)
                    place.mkdir(parents=True, exist_ok=True)
        self.known = now

    def reload(self, scratch: Path) -> None:
        """Copy the changes that others committed."""
        if not self.is_copy:
            return
        for name in set(_stamps(self.folder)) - set(_stamps(self.volume)):
            _remove(self.folder / name)
        for name, stamp in _stamps(self.volume).items():
            mine = _stamps_of(self.folder / name)
            if mine is None or mine[:2] != stamp[:2]:
                _replace(self.volume / name, self.folder / name, scratch)
        self.known = _stamps(self.folder)


def open_view(
    volume_id: str, volume: Path, target: str, read_only: bool, copies: Path | None
) -> View:
    """Return the view of a new container; with `copies`, a copy below that folder."""
    volume.mkdir(parents=True, exist_ok=True)
    folder = volume
    if copies is not None:
        folder = copies / volume_id
        shutil.copytree(volume, folder, symlinks=True)
    view = View(volume_id, volume, folder, target, read_only)
    view.known = _stamps(folder) if view.is_copy else {}
    return view


def _stamps(root: Path) -> dict[str, Stamp]:
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            stamp = _stamps_of(path)
            if stamp is not None:
                found[str(path.relative_to(root))] = stamp
    return found


def _stamps_of(path: Path) -> Stamp | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def _replace(source: Path, target: Path, scratch: Path) -> None:
    temporary = scratch / new_id("view")
    try:
        shutil.copy2(source, temporary, follow_symlinks=False)
    except FileNotFoundError:
        return  # deleted after it was listed
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(temporary, target)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    folder = path.parent
    while folder.is_dir() and not any(folder.iterdir()) and folder.name:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
