"""Files from here to a volume: cut into blocks, the unknown ones sent, all put into their places at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import ModalUnavailable
from runner.targets.modal.volume import ModalVolumeFiles, RemoteEntry
from runner.transfer.checkpoints import APPENDED, Mismatch
from runner.transfer.download import BLOCK_SIZE
from runner.transfer.progress import Progress
from runner.transfer.selection import is_temporary
from runner.transfer.workers import Workers

if TYPE_CHECKING:
    from runner.targets.modal.volume_rpc import MissingBlock

TRIES = 3  # for a file that changes while it is read

ROUNDS = 4  # of asking what is missing: one suffices unless Modal drops a block in between

# Small files share a request: at most so many, and so many bytes.
BATCH_FILES, BATCH_BYTES = 64, 64 * 1024 * 1024


def batches(files: Sequence[LocalFile]) -> Iterator[list[LocalFile]]:
    """Files that travel together, in their order."""
    batch: list[LocalFile] = []
    for file in files:
        if batch and (
            len(batch) == BATCH_FILES or sum(f.size for f in batch) + file.size > BATCH_BYTES
        ):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


class Upload:
    """Sends files; all of one call appear in the volume at once."""

    def __init__(self, files: ModalVolumeFiles, workers: Workers, progress: Progress) -> None:
        self.files, self.workers, self.progress = files, workers, progress

    def send(self, batch: Sequence[LocalFile]) -> None:
        """Put the files into the volume as they were when ``batch`` was listed; one that only grows, as long
        as it was then.

        Raises Mismatch for one that changed, FileNotFoundError, Unavailable, Cancelled.
        """
        counted = 0

        def count(size: int) -> None:
            nonlocal counted
            counted += size
            self.progress.advance(size)

        try:
            self._send(batch, count)
        except BaseException:
            count(-counted)
            raise
        count(sum(file.size for file in batch) - counted)  # blocks that Modal had already
        for _ in batch:
            self.progress.file_done()

    def _send(self, batch: Sequence[LocalFile], count: Callable[[int], None]) -> None:
        from runner.targets.modal.volume_rpc import NewFile

        with ExitStack() as stack:
            # Held open: a file that is replaced by another under its name is still read as one.
            opened = [stack.enter_context(file.local.open("rb")) for file in batch]
            descriptors = [stream.fileno() for stream in opened]
            digests = [[b""] * -(-file.size // BLOCK_SIZE) for file in batch]
            places = [(f, b) for f in range(len(batch)) for b in range(len(digests[f]))]

            def digest(f: int, b: int) -> None:
                digests[f][b] = hashlib.sha256(_block(descriptors[f], batch[f], b)).digest()

            # The blocks of one large file are hashed in parallel; many small files are, batch by batch.
            if len(places) > len(batch):
                self.workers.blocks(partial(digest, f, b) for f, b in places)
            else:
                for f, b in places:
                    digest(f, b)
            new = [
                NewFile(file.path, file.size, os.fstat(fd).st_mode & 0o777, tuple(hashes))
                for file, fd, hashes in zip(batch, descriptors, digests, strict=True)
            ]
            receipts: dict[bytes, bytes] = {}

            def send(missing: MissingBlock) -> None:
                content = _block(descriptors[missing.file], batch[missing.file], missing.block)
                expected = digests[missing.file][missing.block]
                if hashlib.sha256(content).digest() != expected:
                    raise Mismatch(f"{batch[missing.file].local} changed while it was read")
                receipts[expected] = self.files.send(missing, content)
                count(len(content))

            for file, fd in zip(batch, descriptors, strict=True):
                _check_unchanged(file, fd)
            rounds = 0
            while missing := self.files.put(new, receipts):
                if rounds == ROUNDS:
                    raise Mismatch("Modal says each time that blocks are missing, which were sent")
                before = len(receipts)
                try:
                    self.workers.blocks(partial(send, block) for block in missing)
                    rounds += 1
                except ModalUnavailable:
                    if len(receipts) == before:
                        raise  # else: addresses grow old; others serve the rest, and what was sent counts
                for file, fd in zip(batch, descriptors, strict=True):
                    _check_unchanged(file, fd)


def _block(descriptor: int, file: LocalFile, index: int) -> bytes:
    """A block as it travels: without its trailing zeros, which the file's size restores."""
    start = index * BLOCK_SIZE
    wanted = min(BLOCK_SIZE, file.size - start)
    content = os.pread(descriptor, wanted, start)
    if len(content) != wanted:
        raise Mismatch(f"{file.local} became shorter while it was read")
    return content.rstrip(b"\0")


def _check_unchanged(file: LocalFile, descriptor: int) -> None:
    status = os.fstat(descriptor)
    grew = status.st_size > file.size and APPENDED.search(file.path)
    if not grew and (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
        raise Mismatch(f"{file.local} changed while it was read")


@dataclass(frozen=True)
class LocalFile:
    """A file here, and its ``path`` in the volume to be; ``mtime_ns`` in nanoseconds since the epoch."""

    path: str
    local: Path
    size: int
    mtime_ns: int

    @property
    def entry(self) -> RemoteEntry:
        """The same in the words of a listing."""
        return RemoteEntry(self.path, self.size, self.mtime_ns // 10**9, "file")


def list_local(source: Path, remote: str) -> tuple[list[LocalFile], list[str]]:
    """The files of ``source`` (a file or folder) as they would lie at ``remote``, and what is left out.

    A symbolic link to a file counts as that file; one to a folder is left out, since it may lead in a circle.
    """
    if source.is_file():
        return [_file(source, remote)], []
    found: list[LocalFile] = []
    left_out: list[str] = []
    for path in _walk(source, left_out):
        name = path.relative_to(source).as_posix()
        if is_temporary(name):
            continue
        if not path.is_file():
            left_out.append(f"{path} is left out: it is no file")
            continue
        found.append(_file(path, f"{remote}/{name}" if remote else name))
    return sorted(found, key=lambda file: file.path), left_out


def _walk(folder: Path, left_out: list[str]) -> Iterator[Path]:
    for here, folders, files in os.walk(folder):
        for name in folders:
            if (Path(here) / name).is_symlink():
                left_out.append(
                    f"{Path(here) / name} is left out: it is a symbolic link to a folder"
                )
        yield from (Path(here) / name for name in files)


def _file(path: Path, remote: str) -> LocalFile:
    status = path.stat()
    return LocalFile(remote, path, status.st_size, status.st_mtime_ns)
