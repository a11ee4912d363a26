"""Kept folders: a path inside the user's own tree whose content lies on a volume.

What the folder itself brings of that path (a prepare.py beside the data that it writes) is laid beside what was
kept. Each such file is noted with its SHA-256: a newer version replaces the one that was laid there before, and
a file that the job has changed or written itself is never touched.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from job.exit_status import UserError
from job.files import write_atomically

SEEDED = ".seeded.json"  # in a kept folder: path → SHA-256 of what was laid there


@dataclass(frozen=True)
class PersistedPath:
    """Where a kept folder really lies; ``volume``: where what is in it is to be found as well."""

    place: Path
    volume: Path | None = None

    def hand_on(self, since: float) -> None:
        """After the command: have on the volume what is there, and what was written anew since a moment."""
        if self.volume is not None:
            mirror_files(self.place, self.volume, since)


def ensure_writable(folder: Path, copy: Path | None) -> Path:
    """The folder, or its copy at ``copy`` where it can't be written to: a mount may be read-only."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; --dir names the one to run in")
    if copy is None or os.access(folder, os.W_OK):
        return folder
    shutil.copytree(folder, copy, symlinks=True, dirs_exist_ok=True)
    return copy


def link_to_volume(folder: Path, word: str, seeds: Path | None) -> PersistedPath:
    """Have ``PATH=PLACE``: the folder's PATH be a link to PLACE. A folder of the user's own that has content
    stays, and its files are shared instead. Raises UserError where a file is in the way or a link leads elsewhere."""
    path, _, target = word.partition("=")
    where, kept = folder / path, Path(target)
    if seeds is not None and (seeds / path).is_dir():
        seed_volume(seeds / path, _below(seeds / path), kept)
    if where.is_symlink():
        if where.resolve() != kept.resolve():
            raise UserError(
                f"{where} is a link to {where.resolve()}, not to {kept}; remove it, or keep another path"
            )
        kept.mkdir(parents=True, exist_ok=True)
        return PersistedPath(kept)
    if where.is_dir():
        if any(where.iterdir()):
            kept.mkdir(parents=True, exist_ok=True)
            mirror_files(kept, where)
            return PersistedPath(where, kept)
        where.rmdir()
    elif where.exists():
        raise UserError(
            f"{where} is a file, and --persist is for folders; keep the one that it lies in"
        )
    kept.mkdir(parents=True, exist_ok=True)
    where.parent.mkdir(parents=True, exist_ok=True)
    where.symlink_to(kept, target_is_directory=True)
    return PersistedPath(kept)


def mirror_files(source: Path, target: Path, since: float | None = None) -> None:
    """Have each file of ``source`` in ``target`` too, where that has none of its name: the very same file by a
    hard link where both lie on one disk, else a copy. With ``since`` (seconds since the epoch) a file that was
    written later replaces one of its name. Links and what starts with a dot or is Python's own are left out."""
    for inside, folders, names in os.walk(source):
        folders[:] = [
            name for name in folders if name != "__pycache__" and not name.startswith(".")
        ]
        for name in names:
            path = Path(inside) / name
            other = target / path.relative_to(source)
            if name.startswith(".") or path.is_symlink():
                continue
            if other.exists():
                newer = since is not None and path.stat().st_mtime >= since
                if not newer or path.samefile(other):
                    continue
            other.parent.mkdir(parents=True, exist_ok=True)
            temporary = other.with_name(f".{name}.{os.getpid()}.tmp")
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copy2(path, temporary)
            temporary.replace(other)


def seed_volume(source: Path, paths: Iterable[str], kept: Path) -> None:
    """Lay the files ``paths`` of ``source`` into the kept folder, where they are missing or as laid before."""
    noted = _read(kept)
    before = dict(noted)
    for path in sorted(paths):
        content = (source / path).read_bytes()
        new = hashlib.sha256(content).hexdigest()
        target = kept / path
        if target.is_file():
            there = hashlib.sha256(target.read_bytes()).hexdigest()
            if there not in (new, noted.get(path)):
                print(f"runner: {path} is kept as the job left it", file=sys.stderr, flush=True)
                continue
            if there == new:
                noted[path] = new
                continue
        write_atomically(target, content)
        shutil.copymode(source / path, target)
        noted[path] = new
    if noted != before:
        write_atomically(kept / SEEDED, json.dumps(noted, indent=1, sort_keys=True) + "\n")


def _read(kept: Path) -> dict[str, str]:
    try:
        tree = json.loads((kept / SEEDED).read_text())
        return {str(path): str(digest) for path, digest in tree.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _below(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
