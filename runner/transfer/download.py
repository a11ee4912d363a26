"""Download files under a temporary name: resumed block by block, verified, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from job.files import fsync_file, fsync_folder, write_atomically
from job.step_folders import MANIFEST, PARTIAL, find_damage
from runner.errors import TargetUnavailable
from runner.targets.blocks import BLOCK_SIZE, Block, BlockFiles, RemoteEntry
from runner.transfer.mapping import (
    BLOCKS,
    PART,
    Journal,
    UnsafePath,
    is_settled,
    local_path,
    make_parent,
    temporary_path,
)
from runner.transfer.plan import (
    APPEND_ONLY,
    REPLACED,
    Checkpoint,
    ContentMismatch,
    FileDigest,
    is_intact,
)
from runner.transfer.workers import Progress, Task, Workers

MAX_ATTEMPTS = 3  # for a file that changes during the download, or arrives damaged

# Before new bytes are appended to a local log, this many old bytes are compared: a log that was
# restarted has other times and losses.
OVERLAP_BYTES = 64 * 1024
MAX_TAIL_BYTES = 64 * 1024 * 1024  # longer tails are downloaded block by block


class Downloader:
    """Download files of one listing, requested at ``listed`` (seconds since the epoch)."""

    def __init__(
        self,
        files: BlockFiles,
        workers: Workers,
        journal: Journal,
        progress: Progress,
        listed: float,
    ) -> None:
        self.files, self.workers, self.journal = files, workers, journal
        self.progress, self.listed = progress, listed

    def fetch(self, entry: RemoteEntry, target: Path, digest: FileDigest | None = None) -> bool:
        """Replace ``target`` by the verified file, or leave it as it was.

        Returns False if the file is newer than listed. Raises ContentMismatch if it keeps
        changing or never has its SHA-256, FileNotFoundError, TargetUnavailable or Cancelled.
        """
        if digest is None and self._append_tail(entry, target):
            return True
        for _ in range(MAX_ATTEMPTS - 1):
            try:
                return self._fetch_once(entry, target, digest)
            except ContentMismatch:
                continue
        return self._fetch_once(entry, target, digest)

    def _fetch_once(self, entry: RemoteEntry, target: Path, digest: FileDigest | None) -> bool:
        opened = self.files.open(entry.path)
        source = replace(entry, size=opened.size)
        part = PartialFile(target, source)
        with self.progress.counted() as count:
            if len(opened.blocks) < 2:
                content = self.files.block(opened.blocks[0]) if opened.blocks else b""
                if digest is not None and hashlib.sha256(content).hexdigest() != digest.sha256:
                    raise ContentMismatch(f"its SHA-256 differs from {MANIFEST}")
                part.path.write_bytes(content)
                count(len(content))
                part.finish(None)
            else:
                count(part.resume(self.listed))
                self._fetch_blocks(part, opened.blocks, count)
                part.finish(digest)
        return source.size == entry.size

    def _fetch_blocks(
        self, part: PartialFile, blocks: tuple[Block, ...], count: Callable[[int], int]
    ) -> None:
        resumed = bool(part.done)

        def fetch(index: int, block: Block) -> None:
            part.write(index, self.files.block(block))
            count(block.length)

        while True:
            before = len(part.done)
            try:
                missing = [(i, block) for i, block in enumerate(blocks) if i not in part.done]
                self.workers.run_blocks(partial(fetch, i, block) for i, block in missing)
                break
            except TargetUnavailable:
                if len(part.done) == before:
                    raise
                opened = self.files.open(part.source.path)  # the old URLs may have expired
                blocks, resumed = opened.blocks, True
                if opened.size != part.source.size:
                    raise self._changed(part) from None
        if resumed:  # blocks of several answers are one file only if it did not change in between
            now = self.files.entry(part.source.path)
            if now != part.source or not is_settled(now, self.listed):
                raise self._changed(part)

    def _changed(self, partial: PartialFile) -> ContentMismatch:
        partial.discard()
        return ContentMismatch("it changed during the download")

    def _append_tail(self, entry: RemoteEntry, target: Path) -> bool:
        """Append what is new to a file that only grew; return False for any other."""
        old = self.journal.lookup(entry.path, target) if APPEND_ONLY.search(entry.path) else None
        if old is None or not 0 < entry.size - old.size <= MAX_TAIL_BYTES or old.size == 0:
            return False
        overlap = min(old.size, OVERLAP_BYTES)
        start = old.size - overlap
        content = self.files.read(entry.path, start, entry.size - start)
        with target.open("rb") as file:
            file.seek(start)
            if file.read() != content[:overlap] or len(content) != entry.size - start:
                return False
        part = PartialFile(target, entry)
        shutil.copyfile(target, part.path)
        with part.path.open("ab") as file:
            file.write(content[overlap:])
        part.finish(None)
        self.progress.advance(entry.size)
        return True


class PartialFile:
    """The blocks of ``source`` that have arrived, by number in ``done``; it becomes ``target``."""

    def __init__(self, target: Path, source: RemoteEntry) -> None:
        self.target, self.source = target, source
        self.path, self.hashes = temporary_path(target, PART), temporary_path(target, BLOCKS)
        self.done: set[int] = set()
        self._lock = threading.Lock()

    def resume(self, listed: float) -> int:
        """Keep intact blocks of an earlier transfer of the same state of the file.

        Reads and hashes each block. Returns their size in bytes.
        """
        header = json.dumps(asdict(self.source))
        blocks = self._read_hashes(header) if is_settled(self.source, listed) else {}
        with self.path.open("r+b" if blocks else "wb") as file:
            for index, expected in blocks.items():
                file.seek(index * BLOCK_SIZE)
                if hashlib.sha256(file.read(BLOCK_SIZE)).hexdigest() == expected:
                    self.done.add(index)
            file.truncate(self.source.size)
        lines = [header, *(f"{index} {blocks[index]}" for index in sorted(self.done))]
        self.hashes.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return sum(min(BLOCK_SIZE, self.source.size - index * BLOCK_SIZE) for index in self.done)

    def write(self, index: int, content: bytes) -> None:
        """Write a block, then record its SHA-256. Threads may share the file."""
        with self.path.open("r+b") as file:
            file.seek(index * BLOCK_SIZE)
            file.write(content)
        digest = hashlib.sha256(content).hexdigest()
        with self._lock, self.hashes.open("ab") as hashes:
            hashes.write(f"{index} {digest}\n".encode())
            self.done.add(index)

    def finish(self, digest: FileDigest | None) -> None:
        """Verify the size, and the SHA-256 if known, and rename the file to ``target``.

        Raises ContentMismatch and discards the file if they differ.
        """
        size = self.path.stat().st_size
        if size != self.source.size:
            self.discard()
            raise ContentMismatch(f"received {size} bytes, expected {self.source.size}")
        fsync_file(self.path)
        if digest is not None and not is_intact(self.path, digest):
            self.discard()
            raise ContentMismatch(f"its SHA-256 differs from {MANIFEST}")
        os.utime(self.path, (self.source.modified, self.source.modified))
        self.path.replace(self.target)
        self.hashes.unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete the partial file."""
        self.path.unlink(missing_ok=True)
        self.hashes.unlink(missing_ok=True)

    def _read_hashes(self, header: str) -> dict[int, str]:
        try:
            first, *lines = self.hashes.read_text(encoding="utf-8").splitlines()
            if first != header or not self.path.exists():
                return {}
        except (OSError, ValueError):
            return {}
        blocks = {str(index): index for index in range(-(-self.source.size // BLOCK_SIZE))}
        hashes = {}
        for line in lines:
            index, _, digest = line.partition(" ")
            if index in blocks and len(digest) == 64:  # the last line may be incomplete
                hashes[blocks[index]] = digest
        return hashes


class CheckpointDownload:
    """Download one checkpoint to ``root``; it appears with all its files or not at all."""

    def __init__(self, downloader: Downloader, checkpoint: Checkpoint, root: Path) -> None:
        self.downloader, self.checkpoint, self.root = downloader, checkpoint, root
        self.final = make_parent(root, checkpoint.folder) / checkpoint.name
        if self.final.is_symlink():
            raise UnsafePath(f"{self.final} is a symbolic link")
        self.partial = self.final.with_name(PARTIAL + self.final.name)
        self._remaining = len(checkpoint.entries)
        self._lock = threading.Lock()

    def is_intact_locally(self) -> bool:
        """Return True if the local folder has the same manifest and is intact."""
        try:
            if (self.final / MANIFEST).read_bytes() != self.checkpoint.manifest_content:
                return False
        except OSError:
            return False
        if find_damage(self.final):
            return False
        self._record()
        return True

    def tasks(self) -> list[Task]:
        """Return one task per file; the last to end renames the folder."""
        return [
            Task((entry.path,), partial(self._fetch, index))
            for index, entry in enumerate(self.checkpoint.entries)
        ]

    def _fetch(self, index: int) -> None:
        entry = self.checkpoint.entries[index]
        name = entry.path.removeprefix(f"{self.checkpoint.folder}/")
        target = local_path(self.partial, name)
        digest = self.checkpoint.manifest.get(name)
        if name == MANIFEST:
            write_atomically(target, self.checkpoint.manifest_content)
            self.downloader.progress.advance(entry.size)
        elif digest is not None and (
            is_intact(target, digest) or self._copy_intact(name, target, digest)
        ):
            self.downloader.progress.advance(entry.size)
        else:
            self.downloader.fetch(entry, target, digest)
        self.downloader.progress.file_done()
        with self._lock:
            self._remaining -= 1
            is_last = self._remaining == 0
        if is_last:
            self._publish()

    def _copy_intact(self, name: str, target: Path, digest: FileDigest) -> bool:
        """Copy the file from the damaged local checkpoint, if it is intact there."""
        old = self.final / name
        if not is_intact(old, digest):
            return False
        shutil.copyfile(old, target)
        return is_intact(target, digest)

    def _publish(self) -> None:
        """Give the folder its final name."""
        folder = self.checkpoint.folder
        names = {entry.path.removeprefix(f"{folder}/") for entry in self.checkpoint.entries}
        for path in sorted(self.partial.rglob("*"), reverse=True):
            # An interrupted download of another state of the checkpoint may have left more files.
            if path.is_file() and path.relative_to(self.partial).as_posix() not in names:
                path.unlink()
        for name, digest in self.checkpoint.manifest.items():
            size = (self.partial / name).stat().st_size
            if size != digest.bytes:
                raise ContentMismatch(f"{name} has {size} bytes, expected {digest.bytes}")
        fsync_folder(self.partial)
        if self.final.exists():  # damaged, or another checkpoint of the same step
            replaced = self.final.with_name(REPLACED + self.final.name)
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(self.final, replaced)
            os.rename(self.partial, self.final)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.rename(self.partial, self.final)
        fsync_folder(self.final.parent)
        self._record()

    def _record(self) -> None:
        for entry in self.checkpoint.entries:
            local = self.root / entry.path
            if local.is_file():
                self.downloader.journal.record(entry, local, self.downloader.listed)
