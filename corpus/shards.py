"""Token shards, in the format of the FineWeb10B speedrun files (llm.c, modded-nanogpt).

A header of 256 int32 (20240520, 1, number of tokens, zeros), then the tokens as uint16, all
little-endian.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from pydantic import Field

from corpus import DataError
from job.files import fsync_folder, name_in_errors

MAGIC, VERSION, HEADER_BYTES = 20240520, 1, 1024
BLOCK_BYTES = 1 << 22

Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")
Tokens = npt.NDArray[np.uint16]
FileName = Annotated[str, Field(pattern=r"^[^/\x00]+$")]


@dataclass(frozen=True)
class Shard:
    """One shard as ``meta.json`` lists it."""

    name: FileName
    tokens: int
    sha256: str  # "" if this project did not write or download the file


class ShardContent(NamedTuple):
    """A checksum of a whole shard and the largest token in it (-1 if it is empty)."""

    sha256: str
    max_token: int


def read_header(path: Path) -> int:
    """Return the number of tokens in a shard; raise DataError if header and file size disagree."""
    try:
        with path.open("rb") as file:
            magic, version, count = struct.unpack("<3i", file.read(12).ljust(12, b"\0"))
            size, expected = os.fstat(file.fileno()).st_size, HEADER_BYTES + 2 * count
    except OSError as error:
        raise DataError(f"{path}: cannot be read as a shard: {error.strerror or error}") from None
    if magic != MAGIC:
        raise DataError(f"{path}: not a token shard: it begins with {magic}, not {MAGIC}")
    if version != VERSION:
        raise DataError(f"{path}: shard version {version}; this program reads version {VERSION}")
    if size != expected:
        raise DataError(
            f"{path}: damaged: its header promises {count} tokens, {expected} bytes; it has {size}"
        )
    return int(count)


def read_content(path: Path) -> ShardContent:
    """Read a whole shard once for its checksum and its largest token."""
    digest, largest = hashlib.sha256(), -1
    try:
        with path.open("rb", buffering=0) as file:
            digest.update(file.read(HEADER_BYTES))
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                if tokens := len(block) // 2:
                    largest = max(largest, int(np.frombuffer(block, "<u2", tokens).max()))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    return ShardContent(digest.hexdigest(), largest)


def open_tokens(path: Path) -> np.memmap[Any, np.dtype[np.uint16]]:
    """Map the tokens of a shard, (tokens,) uint16; the disk is read when they are used."""
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(read_header(path),))


def matching_shards(folder: Path, split: Split) -> list[Path]:
    """Return ``*train*.bin`` or ``*val*.bin``, sorted; of two such words the later counts."""
    other = "val" if split == "train" else "train"
    paths = folder.glob(f"[!.]*{split}*.bin")
    return sorted(p for p in paths if p.name.rfind(split) > p.name.rfind(other))


def folder_shards(folder: Path) -> list[Path]:
    """Return the shards of both splits."""
    return [path for split in SPLITS for path in matching_shards(folder, split)]


class ShardWriter:
    """Write a stream of tokens as shards named ``<dataset>_<split>_%06d.bin``.

    The open shard has a temporary name until it is full. ``state`` makes everything written so far
    durable; a writer created with that state continues exactly there and discards what was written
    later. Raises DataError if the files of the state are gone.
    """

    def __init__(
        self, folder: Path, dataset: str, split: Split, shard_tokens: int, state: Any = None
    ) -> None:
        state = state or {"shards": [], "open_tokens": 0}
        self.shards = [Shard(**shard) for shard in state["shards"]]
        self._folder, self._stem, self._limit = folder, f"{dataset}_{split}_", shard_tokens
        self._first = int(split == "train")  # FineWeb numbers its files this way
        self._open_tokens, self._file = 0, cast(BinaryIO | None, None)
        for shard in self.shards:
            read_header(folder / shard.name)
        if state["open_tokens"]:
            self._reopen(state["open_tokens"])

    @property
    def total(self) -> int:
        """Tokens written so far."""
        return sum(shard.tokens for shard in self.shards) + self._open_tokens

    def write(self, tokens: Tokens) -> None:
        """Append tokens; a full shard gets its header and its final name."""
        while len(tokens):
            fits, tokens = np.split(tokens, [self._limit - self._open_tokens])
            with name_in_errors(self._part):
                if self._file is None:
                    self._file = self._part.open("wb")
                    self._file.write(bytes(HEADER_BYTES))
                self._file.write(fits.astype("<u2", copy=False).tobytes())
            self._open_tokens += len(fits)
            if self._open_tokens == self._limit:
                self.finish_shard()

    def state(self) -> dict[str, Any]:
        """Return the state from which a later writer continues."""
        if self._file:
            with name_in_errors(self._part):
                self._file.flush()
                os.fsync(self._file.fileno())
        return {"shards": list(map(asdict, self.shards)), "open_tokens": self._open_tokens}

    def finish_shard(self) -> None:
        """Give the open shard, if there is one, its header and its final name."""
        if self._file is None:
            return
        self._file.seek(0)
        self._file.write(struct.pack("<3i", MAGIC, VERSION, self._open_tokens))
        self.state()
        self._file.close()
        digest = read_content(self._part).sha256
        self._part.replace(self._path)
        fsync_folder(self._folder)
        self.shards.append(Shard(self._path.name, self._open_tokens, digest))
        self._file, self._open_tokens = None, 0

    def close(self) -> None:
        """Leave the open shard as it is."""
        if self._file:
            with name_in_errors(self._part):
                self._file.close()

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._stem}{self._first + len(self.shards):06d}.bin"

    @property
    def _part(self) -> Path:
        return self._path.with_name(f".{self._path.name}.part")

    def _reopen(self, tokens: int) -> None:
        # A kill between the rename of a shard and the next journal entry: the shard is open again.
        if self._path.exists() and not self._part.exists():
            self._path.rename(self._part)
        size = HEADER_BYTES + 2 * tokens
        if not self._part.exists() or self._part.stat().st_size < size:
            raise DataError(f"{self._part}: shorter than the journal says")
        self._file = self._part.open("r+b")
        self._file.truncate(size)
        self._file.seek(size)
        self._open_tokens = tokens
