"""TODO."""

from __future__ import annotations

import os
import shutil
import threading
from functools import partial
from pathlib import Path

from job.files import fsync_folder, write_atomically
from job.step_folders import MANIFEST, PARTIAL
from runner.transfer.checkpoints import REPLACED, Mismatch, damage, is_whole
from runner.transfer.download import Download
from runner.transfer.selection import Checkpoint, UnsafePath, folder_of, target_of
from runner.transfer.workers import Task


class CheckpointDownload:
    """The transfer of one checkpoint to ``root``. It appears whole, with its last file, or not at all."""

    def __init__(self, download: Download, checkpoint: Checkpoint, root: Path) -> None:
        self.download, self.checkpoint, self.root = download, checkpoint, root
        self.final = folder_of(root, checkpoint.folder) / checkpoint.name
        if self.final.is_symlink():
            raise UnsafePath(f"{self.final} is a symbolic link, which leads elsewhere")
        self.partial = self.final.with_name(PARTIAL + self.final.name)
        self.is_complete = False
        self._left = len(checkpoint.entries)
        self._lock = threading.Lock()

    def is_here(self) -> bool:
        """Whether the folder is here already and every file of it is what the manifest says."""
        try:
            if (self.final / MANIFEST).read_bytes() != self.checkpoint.manifest_content:
                return False
        except OSError:
            return False
        if damage(self.final) is not None:
            return False
        self._note()
        return True

    def tasks(self) -> list[Task]:
        """One for each file; the one that ends last puts the folder into its place."""
        return [
            Task(entry.path, partial(self._fetch, index))
            for index, entry in enumerate(self.checkpoint.entries)
        ]

    def _fetch(self, index: int) -> None:
        entry = self.checkpoint.entries[index]
        name = entry.path.removeprefix(f"{self.checkpoint.folder}/")
        target = target_of(self.partial, name)
        sums = self.checkpoint.manifest.get(name)
        if name == MANIFEST:
            write_atomically(target, self.checkpoint.manifest_content)
            self.download.progress.advance(entry.size)
        elif sums is not None and (is_whole(target, sums) or self._taken_over(name, target)):
            self.download.progress.advance(entry.size)
        else:
            self.download.fetch(entry, target, sums)
        self.download.progress.file_done()
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._put_in_place()

    def _taken_over(self, name: str, target: Path) -> bool:
        """Whether the file was sound in the damaged checkpoint that is here, and is copied from it."""
        old = self.final / name
        if not is_whole(old, self.checkpoint.manifest[name]):
            return False
        shutil.copyfile(old, target)
        return is_whole(target, self.checkpoint.manifest[name])

    def _put_in_place(self) -> None:
        wanted = {
            entry.path.removeprefix(f"{self.checkpoint.folder}/")
            for entry in self.checkpoint.entries
        }
        for path in sorted(
            self.partial.rglob("*"), reverse=True
        ):  # left over from another state of it
            if path.is_file() and path.relative_to(self.partial).as_posix() not in wanted:
                path.unlink()
        for name, sums in self.checkpoint.manifest.items():
            if (self.partial / name).stat().st_size != sums.bytes:
                raise Mismatch(f"{name} has not {sums.bytes} bytes")
        fsync_folder(self.partial)
        if self.final.exists():  # a damaged one, or another of the same step
            replaced = self.final.with_name(REPLACED + self.final.name)
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(self.final, replaced)
            os.rename(self.partial, self.final)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.rename(self.partial, self.final)
        fsync_folder(self.final.parent)
        self.is_complete = True
        self._note()

    def _note(self) -> None:
        for entry in self.checkpoint.entries:
            local = self.root / entry.path
            if local.is_file():
                self.download.journal.note(entry, local, self.download.listed)
