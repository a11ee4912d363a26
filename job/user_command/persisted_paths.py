"""Persisted paths: folders of the user's tree whose content is on a volume.

Files that the tree itself has there (a prepare.py next to its data) are copied to the
volume first. Each is noted with its SHA-256: a newer version replaces it, but a file that the job
wrote or changed is never touched.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from job.exit_status import UserError
from job.files import alone_in, write_atomically
from job.paths import VolumePaths
from job.typed_json import read_json

SEEDED = ".seeded.json"  # in a persisted folder: path -> SHA-256 of the file copied there


@dataclass(frozen=True)
class PersistedPath:
    """A persisted folder; ``volume`` is set if its files are mirrored, not linked."""

    place: Path
    volume: Path | None = None

    def sync_back(self, since: float) -> None:
        """After the command: copy files written since ``since`` to the volume."""
        if self.volume is not None:
            mirror_files(self.place, self.volume, since)


def ensure_writable(folder: Path, copy: Path | None) -> Path:
    """Return ``folder``, or its copy at ``copy`` if it is read-only."""
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist; --dir is the folder to run in")
    if copy is None or os.access(folder, os.W_OK):
        return folder
    shutil.copytree(folder, copy, symlinks=True, dirs_exist_ok=True)
    return copy


def link_to_volume(folder: Path, word: str, seeds: Path | None) -> PersistedPath:
    """Persist ``PATH=PLACE``: make the folder's PATH a link to PLACE.

    If PATH is a folder with files, mirror its files instead. A link of an ended run to a different
    place on the volumes is replaced. Raises UserError if PATH is a file or any other link.
    """
    path, _, target = word.partition("=")
    where, kept = folder / path, Path(target)
    if seeds is not None and (seeds / path).is_dir():
        seed_volume(seeds / path, _below(seeds / path), kept)
    if where.is_symlink():
        if where.resolve() != kept.resolve():
            _check_replaceable(where, kept)
            where.unlink()
            return _link(where, kept)
        return _link(where, kept, is_linked=True)
    if where.is_dir():
        if any(where.iterdir()):
            kept.mkdir(parents=True, exist_ok=True)
            mirror_files(kept, where)
            return PersistedPath(where, kept)
        where.rmdir()
    elif where.exists():
        raise UserError(
            f"{where} is a file, but --persist needs a folder; use the folder that contains it"
        )
    return _link(where, kept)


def _link(where: Path, kept: Path, is_linked: bool = False) -> PersistedPath:
    """Make ``where`` a link to ``kept``, and hold a shared lock on that until the process ends."""
    kept.mkdir(parents=True, exist_ok=True)
    where.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(kept, os.O_RDONLY)
    os.set_inheritable(descriptor, True)  # a shell replaces this process
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    if not is_linked:
        where.symlink_to(kept, target_is_directory=True)
    return PersistedPath(kept)


def _check_replaceable(where: Path, kept: Path) -> None:
    """Raise UserError unless the link was made for a run that has ended."""
    now, volumes = where.resolve(), VolumePaths.current()
    roots = (volumes.data, volumes.checkpoints, volumes.cache)
    if not any(now.is_relative_to(root.resolve()) for root in roots):
        raise UserError(
            f"{where} links to {now}, not to {kept}; remove the link, or persist a different path"
        )
    if now.is_dir():
        with alone_in(now) as is_unused:
            if not is_unused:
                raise UserError(
                    f"{where} links to {now}, which an active run uses; wait for its end, or start "
                    "this run in a copy of the folder"
                )


def mirror_files(source: Path, target: Path, since: float | None = None) -> None:
    """Copy the files of ``source`` that ``target`` lacks, by hard link if both are on one disk.

    With ``since`` (seconds since the epoch), newer files replace existing ones. Skips links, hidden
    files and __pycache__.
    """
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
    """Copy the files ``paths`` of ``source`` to the volume, unless the job changed them there."""
    noted = _read(kept)
    before = dict(noted)
    for path in sorted(paths):
        content = (source / path).read_bytes()
        new = hashlib.sha256(content).hexdigest()
        target = kept / path
        if target.is_file():
            on_volume = hashlib.sha256(target.read_bytes()).hexdigest()
            if on_volume not in (new, noted.get(path)):
                print(
                    f"runner: {path} was changed by the job and stays as it is",
                    file=sys.stderr,
                    flush=True,
                )
                continue
            if on_volume == new:
                noted[path] = new
                continue
        write_atomically(target, content)
        shutil.copymode(source / path, target)
        noted[path] = new
    if noted != before:
        write_atomically(kept / SEEDED, json.dumps(noted, indent=1, sort_keys=True) + "\n")


def _read(kept: Path) -> dict[str, str]:
    try:
        return read_json(dict[str, str], (kept / SEEDED).read_bytes())
    except (OSError, ValueError):
        return {}


def _below(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
