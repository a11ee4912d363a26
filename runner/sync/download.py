"""One file from a volume to its place here: under a temporary name, continued, verified, renamed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from runner.cloud.patience import Unavailable
from runner.cloud.volumes import RemoteEntry, VolumeFiles
from runner.sync.checkpoints import APPENDED, Mismatch, Sum
from runner.sync.journal import Journal, is_settled
from runner.sync.part import Part
from runner.sync.progress import Progress
from runner.sync.workers import Workers

if TYPE_CHECKING:
    from runner.cloud.volume_rpc import Block

TRIES = 3  # for a file that changes while it is fetched, or comes damaged
# How much of what is here is compared before a file that grew is only added to: a log that was begun anew
# has other times and losses in it.
OVERLAP = 64 * 1024
LONGEST_TAIL = 64 * 1024 * 1024  # bytes; more comes block by block


class Download:
    """Fetches files of one listing, which was asked for at ``listed`` (seconds since the epoch)."""

    def __init__(
        self, files: VolumeFiles, workers: Workers, journal: Journal, progress: Progress, listed: float
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
        part, counted = Part(target, source), 0

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

    def _fetch_blocks(self, part: Part, blocks: tuple[Block, ...], count: Callable[[int], None]) -> None:
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
            except Unavailable:
                if len(part.done) == before:
                    raise
                opened = self.files.open(part.source.path)  # addresses grow old; others serve the rest
                blocks, continued = opened.blocks, True
                if opened.size != part.source.size:
                    raise self._changed(part) from None
        if continued:  # blocks of several answers are one file only if it did not change between them
            now = self.files.entry(part.source.path)
            if now != part.source or not is_settled(now, self.listed):
                raise self._changed(part)

    def _changed(self, part: Part) -> Mismatch:
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
        part = Part(target, entry)
        shutil.copyfile(target, part.path)
        with part.path.open("ab") as file:
            file.write(content[overlap:])
        part.finish(None)
        self.progress.advance(entry.size)
        return True
