"""A volume that is a folder of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.errors import usage
from runner.targets.protocol import Entry


@dataclass(frozen=True)
class Folder:
    """``Files`` over ``root``."""

    root: Path

    def size(self, path: str) -> int | None:
        """Bytes in the file; None where it isn't there."""
        try:
            return self._at(path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """At most ``length`` bytes from ``start``."""
        with self._at(path).open("rb") as file:
            file.seek(start)
            return file.read(-1 if length is None else length)

    def entries(self, path: str = "") -> Iterator[Entry]:
        """What the folder holds, by name."""
        folder = self._at(path)
        for child in sorted(folder.iterdir()):
            try:
                stat = child.lstat()
            except FileNotFoundError:  # a temporary file has its final name by now
                continue
            yield Entry(child.relative_to(self.root).as_posix(), stat.st_size, stat.st_mtime, child.is_dir())

    def _at(self, path: str) -> Path:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise usage(f"{path} leaves the volume; give a path inside it")
        return self.root / path
