"""List local files and upload them: hash blocks, send those that the volume lacks, then publish."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from runner.errors import TargetUnavailable
from runner.targets.blocks import BLOCK_SIZE, BlockFiles, MissingBlock, NewFile, RemoteEntry
from runner.transfer.mapping import is_temporary
from runner.transfer.plan import APPEND_ONLY, ContentMismatch
from runner.transfer.workers import FailedTransfer, Progress, Workers

MAX_ATTEMPTS = 3  # for a file that changes during the upload
MAX_ROUNDS = 4  # of asking for missing blocks; one is enough unless Modal drops a block meanwhile

# Small files share a request: at most this many files and bytes, which are held in memory.
BATCH_FILES, BATCH_BYTES = 64, 16 * 1024 * 1024


@dataclass(frozen=True)
class LocalFile:
    """A local file and its future ``path`` in the volume."""

    path: str
    local: Path
    size: int
    mtime_ns: int

    @property
    def entry(self) -> RemoteEntry:
        """Return it as an entry of the volume's listing."""
        return RemoteEntry(self.path, self.size, self.mtime_ns // 10**9, "file")


def local_file(path: Path, remote: str) -> LocalFile:
    """Return the present state of a file, whose path in the volume is ``remote``."""
    status = path.stat()
    return LocalFile(remote, path, status.st_size, status.st_mtime_ns)


def list_local(source: Path, remote: str) -> tuple[list[LocalFile], list[FailedTransfer]]:
    """List the files of ``source`` with their paths below ``remote``, and what cannot be sent.

    A symbolic link to a file inside ``source`` counts as that file. Links to folders could form a
    cycle, and links that lead out of ``source`` could publish a private file: neither is followed.
    """
    if source.is_file():
        return [local_file(source, remote)], []
    files: list[LocalFile] = []
    failed: list[FailedTransfer] = []
    root = source.resolve()

    def remote_path(path: Path) -> str:
        name = path.relative_to(source).as_posix()
        return f"{remote}/{name}" if remote and name != "." else remote or name

    def on_error(error: OSError) -> None:
        path = remote_path(Path(error.filename))
        failed.append(FailedTransfer(path, f"cannot read the folder: {error.strerror}"))

    for folder, folders, names in os.walk(source, onerror=on_error):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in (*links, *names):
            path = Path(folder) / name
            if is_temporary(path.relative_to(source).as_posix()):
                continue
            try:
                problem = _problem(path, root)
                if not problem:
                    files.append(local_file(path, remote_path(path)))
            except OSError as error:
                problem = f"cannot read the file: {error.strerror}"
            if problem:
                failed.append(FailedTransfer(remote_path(path), problem))
        folders[:] = [name for name in folders if not is_temporary(name)]
    return sorted(files, key=lambda file: file.path), failed


def batches(files: Sequence[LocalFile]) -> Iterator[list[LocalFile]]:
    """Group files, in their order, into requests."""
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


class Uploader:
    """Send files; those of one call appear in the volume at once."""

    def __init__(self, files: BlockFiles, workers: Workers, progress: Progress) -> None:
        self.files, self.workers, self.progress = files, workers, progress
        self._sent: list[LocalFile] = []

    def take_sent(self) -> list[LocalFile]:
        """Return the files that were sent since the last call, as they were when they were read."""
        sent, self._sent = self._sent, []
        return sent

    def send(self, batch: Sequence[LocalFile]) -> None:
        """Put the files into the volume in one state of each.

        A log that grows is sent up to the size that was listed. Raises ContentMismatch for a file
        that keeps changing, FileNotFoundError, TargetUnavailable or Cancelled.
        """
        for _ in range(MAX_ATTEMPTS - 1):
            try:
                return self._send_once(batch)
            except ContentMismatch:
                batch = [local_file(file.local, file.path) for file in batch]
        return self._send_once(batch)

    def _send_once(self, batch: Sequence[LocalFile]) -> None:
        with self.progress.counted() as count:
            self._send(batch, count)
            count(sum(file.size for file in batch) - count(0))  # blocks that Modal had already
        self._sent += batch
        for _ in batch:
            self.progress.file_done()

    def _send(self, batch: Sequence[LocalFile], count: Callable[[int], int]) -> None:
        with ExitStack() as stack:
            # Open all files first: a file that is replaced under its name is still read as one.
            opened = [stack.enter_context(file.local.open("rb")) for file in batch]
            descriptors = [stream.fileno() for stream in opened]
            digests = [[b""] * -(-file.size // BLOCK_SIZE) for file in batch]
            blocks = [(f, b) for f in range(len(batch)) for b in range(len(digests[f]))]
            are_small = all(len(hashes) <= 1 for hashes in digests)
            contents: dict[int, bytes] = {}  # of small files, so that each is read once

            def hash_block(f: int, b: int) -> None:
                content = _read_block(descriptors[f], batch[f], b)
                digests[f][b] = hashlib.sha256(content).digest()
                if are_small:
                    contents[f] = content

            # Hash the blocks of a large file in parallel. Small files are parallel by batch.
            if not are_small:
                self.workers.run_blocks(partial(hash_block, f, b) for f, b in blocks)
            else:
                for f, b in blocks:
                    hash_block(f, b)
            new = [
                NewFile(file.path, file.size, os.fstat(fd).st_mode & 0o777, tuple(hashes))
                for file, fd, hashes in zip(batch, descriptors, digests, strict=True)
            ]
            receipts: dict[bytes, bytes] = {}

            def send_block(missing: MissingBlock) -> None:
                file = batch[missing.file]
                expected = digests[missing.file][missing.block]
                if are_small:
                    content = contents[missing.file]
                else:
                    content = _read_block(descriptors[missing.file], file, missing.block)
                    if hashlib.sha256(content).digest() != expected:
                        raise ContentMismatch(f"{file.local} changed during the upload")
                receipts[expected] = self.files.send(missing, content)
                count(len(content))

            for file, fd in zip(batch, descriptors, strict=True):
                _check_unchanged(file, fd)
            rounds = 0
            while missing := self.files.put(new, receipts):
                if rounds == MAX_ROUNDS:
                    raise ContentMismatch(
                        f"the volume still lacks blocks that were sent {MAX_ROUNDS} times"
                    )
                before = len(receipts)
                try:
                    self.workers.run_blocks(partial(send_block, block) for block in missing)
                    rounds += 1
                except TargetUnavailable:
                    # If some blocks were sent, the URLs of the rest may have expired: get new ones.
                    if len(receipts) == before:
                        raise
                for file, fd in zip(batch, descriptors, strict=True):
                    _check_unchanged(file, fd)


def _problem(path: Path, root: Path) -> str:
    """Return why a file, or a link to a folder, cannot be sent; '' if it can."""
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # Python 3.11 raises RuntimeError for a cycle
            return "a broken symbolic link"
        if not target.is_relative_to(root):
            return "a symbolic link that leads out of the folder; push its target by itself"
        if target.is_dir():
            return "a symbolic link to a folder; push its target by itself"
    if not path.is_file():
        return "not a regular file"
    if not os.access(path, os.R_OK):
        return "cannot read the file: Permission denied"
    return ""


def _read_block(descriptor: int, file: LocalFile, index: int) -> bytes:
    """Read a block without its trailing zeros, which the file's size restores."""
    start = index * BLOCK_SIZE
    length = min(BLOCK_SIZE, file.size - start)
    content = os.pread(descriptor, length, start)
    if len(content) != length:
        raise ContentMismatch(f"{file.local} became shorter during the upload")
    return content.rstrip(b"\0")


def _check_unchanged(file: LocalFile, descriptor: int) -> None:
    status = os.fstat(descriptor)
    grew = status.st_size > file.size and APPEND_ONLY.search(file.path)
    if not grew and (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
        raise ContentMismatch(f"{file.local} changed during the upload")
