"""Shards of tokens: the format of the FineWeb10B speedrun files (llm.c, modded-nanogpt).

256 int32 of header (20240520, 1, number of tokens, zeros), then the tokens as uint16, all little-endian.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from corpus import DataError
from job.files import fsync_folder, naming

MAGIC, VERSION, HEADER_BYTES = 20240520, 1, 1024

Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")
Tokens = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Shard:
    name: str
    tokens: int
    sha256: str  # "" where it was not made here


def read_header(path: Path) -> int:
    """The number of tokens in the shard at ``path``; DataError where header and file don't agree."""
    try:
        with path.open("rb") as file:
            magic, version, count = struct.unpack("<3i", file.read(12).ljust(12, b"\0"))
            size, right = os.fstat(file.fileno()).st_size, HEADER_BYTES + 2 * count
    except OSError as error:
        raise DataError(f"{path}: can't be read as a shard: {error}") from None
    if magic != MAGIC:
        raise DataError(f"{path}: is no shard of tokens: it begins with {magic}, not {MAGIC}")
    if version != VERSION:
        raise DataError(f"{path}: is of version {version}; this program reads version {VERSION}")
    if size != right:
        raise DataError(
            f"{path}: is damaged: its header promises {count} tokens, {right} bytes; it has {size}"
        )
    return int(count)


def open_tokens(path: Path) -> np.memmap[Any, np.dtype[np.uint16]]:
    """The tokens of the shard at ``path``, (tokens,) uint16, read from the disk as they are used."""
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(read_header(path),))


def shard_paths(folder: Path, split: Split) -> list[Path]:
    """``*train*.bin`` or ``*val*.bin`` in ``folder``, sorted; a name with both words is of the later one."""
    other = "val" if split == "train" else "train"
    return sorted(
        p for p in folder.glob(f"[!.]*{split}*.bin") if p.name.rfind(split) > p.name.rfind(other)
    )


class TokenStream:
    """All shards of one split as one sequence of tokens. DataError where there are none or one is damaged."""

    def __init__(self, folder: Path, split: Split) -> None:
        self._shards = [
            open_tokens(path) for path in shard_paths(folder, split) if read_header(path)
        ]
        if not self._shards:
            raise DataError(
                f"{folder}: holds no tokens in *{split}*.bin; `python -m corpus.prepare` makes them"
            )
        self._bounds = np.cumsum([0, *map(len, self._shards)])

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def slice(self, start: int, stop: int) -> Tokens:
        """Tokens start … stop-1, copied, across the bounds of shards: (stop - start,) uint16."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start}:{stop} of {len(self)}")
        parts, shard = (
            [np.empty(0, np.uint16)],
            int(np.searchsorted(self._bounds, start, side="right")) - 1,
        )
        while shard < len(self._shards) and (begin := int(self._bounds[shard])) < stop:
            parts.append(self._shards[shard][max(0, start - begin) : stop - begin])
            shard += 1
        return np.concatenate(parts)

    def windows(self, starts: npt.NDArray[np.int64], length: int) -> Tokens:
        """The windows that begin at ``starts``: (len(starts), length) uint16."""
        return np.stack([self.slice(start, start + length) for start in starts.tolist()])


class ShardWriter:
    """Writes a stream of tokens as shards of ``shard_tokens``, named ``<dataset>_<split>_%06d.bin``.

    The open shard has a temporary name until it is full. ``state`` makes durable what was written; a writer
    made with it goes on exactly there, whatever was written after it. DataError where that is gone.
    """

    def __init__(
        self,
        folder: Path,
        dataset: str,
        split: Split,
        shard_tokens: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.shards = [Shard(**shard) for shard in (state or {}).get("shards", [])]
        self._folder, self._stem, self._limit = folder, f"{dataset}_{split}_", shard_tokens
        self._first = int(split == "train")  # as FineWeb's files are numbered
        self._open_tokens = 0
        self._file: BinaryIO | None = None
        for shard in self.shards:
            read_header(folder / shard.name)
        if state and state["open_tokens"]:
            self._reopen(state["open_tokens"])

    @property
    def total(self) -> int:
        """Tokens written so far."""
        return sum(shard.tokens for shard in self.shards) + self._open_tokens

    def write(self, tokens: Tokens) -> None:
        while len(tokens):
            if self._file is None:
                self._file = self._part.open("wb")
                self._file.write(bytes(HEADER_BYTES))
            fits, tokens = np.split(tokens, [self._limit - self._open_tokens])
            with naming(self._part):
                self._file.write(fits.astype("<u2", copy=False).tobytes())
            self._open_tokens += len(fits)
            if self._open_tokens == self._limit:
                self.finish_shard()

    def state(self) -> dict[str, Any]:
        """What a writer needs to go on from here."""
        if self._file:
            with naming(self._part):
                self._file.flush()
                os.fsync(self._file.fileno())
        return {
            "shards": [asdict(shard) for shard in self.shards],
            "open_tokens": self._open_tokens,
        }

    def finish_shard(self) -> None:
        """Give the open shard, if there is one, its header and its name."""
        if self._file is None:
            return
        self._file.seek(0)
        self._file.write(struct.pack("<3i", MAGIC, VERSION, self._open_tokens))
        self.state()
        self._file.close()
        with self._part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._part.replace(self._path)
        fsync_folder(self._folder)
        self.shards.append(Shard(self._path.name, self._open_tokens, digest))
        self._file, self._open_tokens = None, 0

    def close(self) -> None:
        """Leave the open shard as it is."""
        if self._file:
            with naming(self._part):
                self._file.close()

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._stem}{self._first + len(self.shards):06d}.bin"

    @property
    def _part(self) -> Path:
        return self._path.with_name(f".{self._path.name}.part")

    def _reopen(self, tokens: int) -> None:
        # Killed between naming the shard and noting so in the journal: it is the open one again.
        if self._path.exists() and not self._part.exists():
            self._path.rename(self._part)
        size = HEADER_BYTES + 2 * tokens
        if not self._part.exists() or self._part.stat().st_size < size:
            raise DataError(f"{self._part}: is shorter than it was")
        self._file = self._part.open("r+b")
        self._file.truncate(size)
        self._file.seek(size)
        self._open_tokens = tokens
