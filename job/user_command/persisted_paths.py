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
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from job.exit_status import UserError
from job.files import exclusive_lock, temporary_name, write_atomically
from job.paths import VolumePaths
from job.step_folders import sha256
from job.typed_json import read_json
from job.user_command import report

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


def link_to_volume(folder: Path, mapping: str, seeds: Path | None) -> PersistedPath:
    """Persist ``PATH=TARGET``: make the folder's PATH a link to TARGET, on the volume.

    If PATH is a folder with files, mirror its files instead. A link of an ended run to a different
    folder on the volumes is replaced. Raises UserError if PATH is a file or any other link.
    """
    path, _, target = mapping.partition("=")
    link, volume_folder = folder / path, Path(target)
    if seeds is not None and (source := seeds / path).is_dir():
        files = [file for file in source.rglob("*") if file.is_file()]
        seed_volume(source, [str(file.relative_to(source)) for file in files], volume_folder)
    if link.is_symlink():
        if link.resolve() != volume_folder.resolve():
            _check_replaceable(link, volume_folder)
            link.unlink()
        return _link(link, volume_folder)
    if link.is_dir():
        if any(link.iterdir()):
            volume_folder.mkdir(parents=True, exist_ok=True)
            mirror_files(volume_folder, link)
            return PersistedPath(link, volume_folder)
        link.rmdir()
    elif link.exists():
        raise UserError(
            f"{link} is a file, but --persist needs a folder; use the folder that contains it"
        )
    return _link(link, volume_folder)


def _link(link: Path, volume_folder: Path) -> PersistedPath:
    """Make ``link`` point to ``volume_folder``, and lock that, shared, until the process ends."""
    volume_folder.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(volume_folder, os.O_RDONLY)
    os.set_inheritable(descriptor, True)  # a shell replaces this process
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    if not link.is_symlink():
        link.symlink_to(volume_folder, target_is_directory=True)
    return PersistedPath(volume_folder)


def _check_replaceable(link: Path, volume_folder: Path) -> None:
    """Raise UserError unless the link was created for a run that has ended."""
    now = link.resolve()
    if not any(now.is_relative_to(root.resolve()) for root in VolumePaths.current()):
        raise UserError(
            f"{link} links to {now}, not to {volume_folder}; remove the link, or persist a "
            "different path"
        )
    if now.is_dir():
        with exclusive_lock(now) as is_unused:
            if not is_unused:
                raise UserError(
                    f"{link} links to {now}, which an active run uses; wait for its end, or start "
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
            temporary = temporary_name(other)
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copy2(path, temporary)
            temporary.replace(other)


def seed_volume(source: Path, paths: Iterable[str], volume_folder: Path) -> None:
    """Copy the files ``paths`` of ``source`` to the volume, unless the job changed them there."""
    seeded = _read(volume_folder)
    before = dict(seeded)
    for path in sorted(paths):
        content = (source / path).read_bytes()
        new = hashlib.sha256(content).hexdigest()
        target = volume_folder / path
        on_volume = sha256(target) if target.is_file() else None
        if on_volume not in (None, new, seeded.get(path)):
            report(f"{path} was changed by the job and stays as it is")
            continue
        if on_volume != new:
            write_atomically(target, content)
            shutil.copymode(source / path, target)
        seeded[path] = new
    if seeded != before:
        write_atomically(
            volume_folder / SEEDED, json.dumps(seeded, indent=1, sort_keys=True) + "\n"
        )


def _read(volume_folder: Path) -> dict[str, str]:
    try:
        return read_json(dict[str, str], (volume_folder / SEEDED).read_bytes())
    except (OSError, ValueError):
        return {}
