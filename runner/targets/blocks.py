"""Files of a remote volume as blocks, which a transfer reads and sends, and retries of requests."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Self, TypeVar

from runner.errors import TargetUnavailable, usage
from runner.target import VolumeEntry

BLOCK_SIZE = 8 * 1024 * 1024  # bytes; Modal's volumes of version 2 cut files into such blocks


T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """The number of attempts of a request, and the growing delays between them.

    By default they last about half a minute, enough to switch networks.
    """

    attempts: int = 7
    first_delay_s: float = 0.5
    max_delay_s: float = 10.0
    sleep: Callable[[float], None] = time.sleep

    def call(self, request: Callable[[], T], is_retried: Callable[[], bool] = lambda: True) -> T:
        """Return ``request()``, repeated after each TargetUnavailable while ``is_retried()``.

        Raises the last TargetUnavailable.
        """
        delay = self.first_delay_s
        for _ in range(self.attempts - 1):
            try:
                return request()
            except TargetUnavailable:
                if not is_retried():
                    raise
                # Half of it at random, so that parallel transfers do not retry all at once.
                self.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(delay * 2, self.max_delay_s)
        return request()


@dataclass(frozen=True)
class RemoteEntry:
    """An entry of a volume's listing; ``modified`` is in whole seconds since the epoch."""

    path: str
    size: int
    modified: int
    kind: str  # file, directory, symlink, or another name in Modal's FileEntryType


@dataclass(frozen=True)
class Block:
    """A part of a file at one address, from ``start``: a block, or the requested range of one."""

    start: int
    length: int
    url: str
    is_complete: bool


@dataclass(frozen=True)
class OpenFile:
    """A file at the time of the request: its size in bytes, and the blocks of the requested range.

    On Modal, blocks never change, so a file that is replaced meanwhile is still read correctly.
    """

    size: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class NewFile:
    """A file to create: path, size in bytes, permission bits, and the SHA-256 of each block.

    The digests are those of the blocks without trailing zeros.
    """

    path: str
    size: int
    mode: int
    blocks: tuple[bytes, ...]


@dataclass(frozen=True)
class MissingBlock:
    """A block that the volume lacks: the numbers of its file and block, and its address."""

    file: int
    block: int
    url: str


def block_ranges(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of bytes from ``start`` to ``end``, cut at the blocks of the file."""
    while start < end:
        stop = min(end, (start // BLOCK_SIZE + 1) * BLOCK_SIZE)
        yield start, stop
        start = stop


def checked_path(path: str) -> str:
    """Return ``path`` without outer slashes. Raises RunnerError, exit status 2, for a ``..``."""
    parts = PurePosixPath(path.strip("/")).parts
    if ".." in parts:
        raise usage(f"{path} leads out of the volume; give a path inside it")
    return "/".join(parts)


class BlockFiles(ABC):
    """The files of a volume that `pull` and `push` copy."""

    retry = RetryPolicy()  # of every request

    @property
    @abstractmethod
    def id(self) -> str:
        """Return an id that another volume of the same name does not have."""

    @abstractmethod
    def listing(self, path: str = "", recursive: bool = True) -> list[RemoteEntry]:
        """Return the file, or the folder's entries. Raises FileNotFoundError."""

    @abstractmethod
    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Return at most ``length`` bytes from ``start``. Raises FileNotFoundError."""

    @abstractmethod
    def open(self, path: str, start: int = 0, length: int | None = None) -> OpenFile:
        """Return the file's size and blocks, as they are now. Raises FileNotFoundError."""

    @abstractmethod
    def block(self, block: Block) -> bytes:
        """Return the bytes of a block."""

    @abstractmethod
    def put(self, files: Sequence[NewFile], receipts: Mapping[bytes, bytes]) -> list[MissingBlock]:
        """Create or replace all files at once, or none and return the missing blocks."""

    @abstractmethod
    def send(self, block: MissingBlock, content: bytes) -> bytes:
        """Send a block without its trailing zeros; return the receipt for ``put``."""

    @abstractmethod
    def _remove(self, path: str, recursive: bool) -> None: ...

    def remove(self, path: str, recursive: bool = False) -> None:
        """Delete a file, or a folder if ``recursive``. Raises FileNotFoundError."""
        if not checked_path(path):
            raise usage("that is the whole volume; name a file or folder in it")
        self._remove(checked_path(path), recursive)

    def size(self, path: str) -> int | None:
        """Return the file's size in bytes; None if it does not exist."""
        entry = self.entry(path)
        return entry.size if entry is not None else None

    def entries(self, path: str = "") -> Iterator[VolumeEntry]:
        """Yield what the folder contains, sorted by name. Raises FileNotFoundError."""
        for entry in sorted(self.listing(path, recursive=False), key=lambda entry: entry.path):
            is_folder = entry.kind == "directory"
            yield VolumeEntry(entry.path, entry.size, float(entry.modified), is_folder)

    def entry(self, path: str) -> RemoteEntry | None:
        """Return the file's entry; None if it does not exist."""
        try:
            listed = self.listing(path, recursive=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return next((e for e in listed if e.path == path.strip("/") and e.kind == "file"), None)

    def with_retries(self, **changes: Any) -> Self:
        """Return the same files, with ``changes`` of their `RetryPolicy`."""
        files = copy(self)
        files.retry = replace(self.retry, **changes)
        return files
