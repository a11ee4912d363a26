"""A file on its way: ``.<name>.part`` beside its place, and for a large one ``.<name>.part.blocks``, which
says of what it is a copy and which blocks of it are here, each with its SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import asdict
from pathlib import Path

from job.files import fsync_file
from job.step_folders import sha256
from runner.cloud.volumes import RemoteEntry
from runner.sync.checkpoints import Mismatch, Sum
from runner.sync.journal import is_settled
from runner.sync.names import BLOCKS, PART, beside

BLOCK_SIZE = 8 * 1024 * 1024  # bytes; that of volumes of version 2, which their answers are cut by


class Part:
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
