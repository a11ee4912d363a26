"""One file from a volume to its place here: under a temporary name, continued, verified, renamed."""

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
from typing import TYPE_CHECKING

from job.files import fsync_file
from job.step_folders import sha256
from runner.errors import ModalUnavailable
from runner.targets.modal.volume import ModalVolumeFiles, RemoteEntry
from runner.transfer.checkpoints import APPENDED, Mismatch, Sum
from runner.transfer.journal import Journal, is_settled
from runner.transfer.progress import Progress
from runner.transfer.selection import BLOCKS, PART, beside
from runner.transfer.workers import Workers

if TYPE_CHECKING:
    from runner.targets.modal.volume_rpc import Block

TRIES = 3  # for a file that changes while it is fetched, or comes damaged

# How much of what is here is compared before a file that grew is only added to: a log that was begun anew
# has other times and losses in it.
OVERLAP = 64 * 1024

LONGEST_TAIL = 64 * 1024 * 1024  # bytes; more comes block by block


class Download:
    """Fetches files of one listing, which was asked for at ``listed`` (seconds since the epoch)."""

    def __init__(
        self,
        files: ModalVolumeFiles,
        workers: Workers,
        journal: Journal,
        progress: Progress,
        listed: float,
    ) -> None:
        self.files, self.workers, self.journal = files, workers, journal
        self.progress, self.listed = progress, listed

    def fetch(self, entry: RemoteEntry, target: Path, sums: Sum | None = None) -> bool:
        """Have ``target`` hold the file, whole and verified, or what it held before. Whether it is what
        the listing said, and not newer.

        Raises Mismatch for one that changes all the time or never has its SHA-256, FileNotFoundError,
        Unavailable, Cancelled.
        """
        if sums is None and self._add_tail(entry, target):
            return True
        for _ in range(TRIES - 1):
            try:
                return self._fetch_whole(entry, target, sums)
            except Mismatch:
                continue
        return self._fetch_whole(entry, target, sums)

    def _fetch_whole(self, entry: RemoteEntry, target: Path, sums: Sum | None) -> bool:
        opened = self.files.open(entry.path)
        source = replace(entry, size=opened.size)
        part, counted = PartialFile(target, source), 0

        def count(size: int) -> None:
            nonlocal counted
            counted += size
            self.progress.advance(size)

        try:
            if len(opened.blocks) < 2:
                content = self.files.block(opened.blocks[0]) if opened.blocks else b""
                part.path.write_bytes(content)
                count(len(content))
            else:
                count(part.resume(self.listed))
                self._fetch_blocks(part, opened.blocks, count)
            part.finish(sums)
        except BaseException:
            count(-counted)
            raise
        return source.size == entry.size

    def _fetch_blocks(
        self, part: PartialFile, blocks: tuple[Block, ...], count: Callable[[int], None]
    ) -> None:
        continued = bool(part.done)

        def fetch(index: int, block: Block) -> None:
            part.write(index, self.files.block(block))
            count(block.length)

        while True:
            before = len(part.done)
            try:
                missing = [(i, block) for i, block in enumerate(blocks) if i not in part.done]
                self.workers.blocks(partial(fetch, i, block) for i, block in missing)
                break
            except ModalUnavailable:
                if len(part.done) == before:
                    raise
                opened = self.files.open(
                    part.source.path
                )  # addresses grow old; others serve the rest
                blocks, continued = opened.blocks, True
                if opened.size != part.source.size:
                    raise self._changed(part) from None
        if (
            continued
        ):  # blocks of several answers are one file only if it did not change between them
            now = self.files.entry(part.source.path)
            if now != part.source or not is_settled(now, self.listed):
                raise self._changed(part)

    def _changed(self, part: PartialFile) -> Mismatch:
        part.discard()
        return Mismatch("it changed while it was fetched")

    def _add_tail(self, entry: RemoteEntry, target: Path) -> bool:
        """Whether the file only grew since it was fetched, and what came is added to it."""
        seen = self.journal.last(entry.path, target) if APPENDED.search(entry.path) else None
        if seen is None or not 0 < entry.size - seen.size <= LONGEST_TAIL or seen.size == 0:
            return False
        overlap = min(seen.size, OVERLAP)
        start = seen.size - overlap
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


BLOCK_SIZE = 8 * 1024 * 1024  # bytes; that of volumes of version 2, which their answers are cut by


class PartialFile:
    """What there is of ``source`` so far, to become ``target``. ``done`` holds the numbers of its blocks."""

    def __init__(self, target: Path, source: RemoteEntry) -> None:
        self.target, self.source = target, source
        self.path, self.marks = beside(target, PART), beside(target, BLOCKS)
        self.done: set[int] = set()
        self._lock = threading.Lock()

    def resume(self, listed: float) -> int:
        """Take over what an earlier process left, where it is a copy of the same state of the file, and
        begin anew where not. Returns the number of bytes that are here; each block was read and hashed."""
        header = json.dumps(asdict(self.source))
        found = self._marked(header) if is_settled(self.source, listed) else {}
        with self.path.open("r+b" if found else "wb") as file:
            for index, expected in found.items():
                file.seek(index * BLOCK_SIZE)
                if hashlib.sha256(file.read(BLOCK_SIZE)).hexdigest() == expected:
                    self.done.add(index)
            file.truncate(self.source.size)
        lines = [header, *(f"{index} {found[index]}" for index in sorted(self.done))]
        self.marks.write_text("\n".join(lines) + "\n")
        return sum(min(BLOCK_SIZE, self.source.size - index * BLOCK_SIZE) for index in self.done)

    def write(self, index: int, content: bytes) -> None:
        """Put a block into its place, then mark it. Threads may share the part."""
        with self.path.open("r+b") as file:
            file.seek(index * BLOCK_SIZE)
            file.write(content)
        digest = hashlib.sha256(content).hexdigest()
        with self._lock, self.marks.open("ab") as marks:
            marks.write(f"{index} {digest}\n".encode())
            self.done.add(index)

    def finish(self, sums: Sum | None) -> None:
        """Check the size, and the SHA-256 if one is known, and move it to its place.

        Raises Mismatch, and forgets the part, where they differ.
        """
        size = self.path.stat().st_size
        if size != self.source.size:
            self.discard()
            raise Mismatch(f"{size} bytes came of {self.source.size}")
        fsync_file(self.path)
        if sums is not None and (size != sums.bytes or sha256(self.path) != sums.sha256):
            self.discard()
            raise Mismatch("its SHA-256 is not the one of the manifest")
        os.utime(self.path, (self.source.modified, self.source.modified))
        self.path.replace(self.target)
        self.marks.unlink(missing_ok=True)

    def discard(self) -> None:
        """Forget it."""
        self.path.unlink(missing_ok=True)
        self.marks.unlink(missing_ok=True)

    def _marked(self, header: str) -> dict[int, str]:
        try:
            first, *lines = self.marks.read_text().splitlines()
            if first != header or not self.path.exists():
                return {}
        except (OSError, ValueError):
            return {}
        found = {}
        for line in lines:
            index, _, digest = line.partition(" ")
            if index.isdigit() and len(digest) == 64:  # the last line may be cut
                found[int(index)] = digest
        return found
