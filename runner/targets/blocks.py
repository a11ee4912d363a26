"""Files of a volume as blocks: what a transfer reads and sends, on every target with volumes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from runner.target import VolumeEntry

BLOCK_SIZE = 8 * 1024 * 1024  # bytes; Modal's volumes of version 2 cut files into such blocks


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


class ListedFiles(ABC):
    """The questions about a volume's files that its listing answers."""

    @abstractmethod
    def listing(self, path: str = "", recursive: bool = True) -> list[RemoteEntry]:
        """Return the file, or the folder's entries. Raises FileNotFoundError."""

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


class BlockFiles(Protocol):
    """The files of a volume that `pull` and `push` copy."""

    @property
    def id(self) -> str:
        """Return an id that another volume of the same name does not have."""
        ...

    def size(self, path: str) -> int | None: ...
    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes: ...
    def entries(self, path: str = "") -> Iterator[VolumeEntry]: ...
    def entry(self, path: str) -> RemoteEntry | None: ...
    def listing(self, path: str = "", recursive: bool = True) -> list[RemoteEntry]: ...
    def open(self, path: str, start: int = 0, length: int | None = None) -> OpenFile: ...
    def block(self, block: Block) -> bytes: ...
    def put(self, files: Sequence[NewFile], receipts: Mapping[bytes, bytes]) -> list[MissingBlock]:
        """Create or replace all files at once, or none and return the missing blocks."""
        ...

    def send(self, block: MissingBlock, content: bytes) -> bytes: ...
    def remove(self, path: str, recursive: bool = False) -> None: ...
    def with_retries(
        self, attempts: int | None = None, sleep: Callable[[float], None] | None = None
    ) -> Self:
        """Return the same files with a different number of attempts, or a different way to wait."""
        ...
