"""The addresses of blocks: where a file's are read and where missing ones are sent, and how strict Modal is."""

from __future__ import annotations

import base64
import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .content import Content
from .ids import new_id

BLOCK_SIZE = 8 * 1024 * 1024  # bytes; modal._utils.blob_utils.BLOCK_SIZE


@dataclass(frozen=True)
class Rules:
    """What Modal's server may do and need not; without a rule the stand-in is lenient.

    sends_digests: each block comes with the SHA-256 of the block as it is stored, whole and without trailing zeros.
    needs_receipts: a block is there if the request has its receipt or the file in that place holds it; one that was
    only sent some time is not. puts_per_answer: so many uploads, then the addresses of that answer have expired.
    """

    sends_digests: bool = False
    needs_receipts: bool = False
    puts_per_answer: int | None = None


@dataclass(frozen=True)
class Download:
    """What the addresses of one answer point to: the file as it was then, even if it is replaced meanwhile."""

    file: Path
    start: int
    length: int
    omits_zeros: bool  # the client fills up with zeros what is short


@dataclass(frozen=True)
class Slice:
    """A block, or a part of one, as it is sent."""

    file: Path
    begin: int
    length: int
    headers: dict[str, str]


class Blocks:
    """Makes addresses and knows what is behind them."""

    def __init__(self, content: Content, scratch: Path) -> None:
        self.rules = Rules()
        self.url = ""
        self._content = content
        self._scratch = scratch
        self._downloads: dict[str, Download] = {}
        self._puts: Counter[str] = Counter()

    def to_read(self, file: Path, start: int, length: int, omits_zeros: bool) -> list[str]:
        """An address for each block of the range; ``length`` ends within the file."""
        token = new_id("download")
        held = self._scratch / token
        os.link(
            file, held
        )  # blocks on Modal never change: a file replaced during a download stays whole
        self._downloads[token] = Download(held, start, length, omits_zeros)
        count = -(-(start + length) // BLOCK_SIZE) - start // BLOCK_SIZE if length else 0
        return [f"{self.url}/block/{token}/{index}" for index in range(count)]

    def read(self, token: str, index: int) -> Slice | None:
        """What an address of ``to_read`` serves; None for one that has expired."""
        download = self._downloads.get(token)
        if download is None:
            return None
        number = download.start // BLOCK_SIZE + index
        begin = max(download.start, number * BLOCK_SIZE)
        length = max(0, min(download.start + download.length, (number + 1) * BLOCK_SIZE) - begin)
        headers: dict[str, str] = {}
        if download.omits_zeros:
            length = len(_stored(download.file, begin, length))
        if self.rules.sends_digests:
            digest = hashlib.sha256(
                _stored(download.file, number * BLOCK_SIZE, BLOCK_SIZE)
            ).digest()
            headers["Repr-Digest"] = f"sha-256=:{base64.b64encode(digest).decode()}:"
        return Slice(download.file, begin, length, headers)

    def to_put(self, sha256: bytes, answer: str) -> str:
        """Where a missing block goes; ``answer`` is the same for all that expire together."""
        return f"{self.url}/block/{sha256.hex()}?answer={answer}"

    def takes(self, answer: str) -> bool:
        """Whether an address of ``answer`` still serves; asked once for each upload."""
        self._puts[answer] += 1
        return (
            self.rules.puts_per_answer is None or self._puts[answer] <= self.rules.puts_per_answer
        )

    def has(self, sha256: bytes, receipt: bytes, placed: Path) -> bool:
        """Whether the block need not be sent for the file ``placed``."""
        if self.rules.needs_receipts and receipt != sha256:
            return sha256 in self._of(placed)
        return self._content.has(sha256.hex())

    def _of(self, placed: Path) -> set[bytes]:
        """The blocks of the file as it is, which from now on can be told by their SHA-256."""
        if not placed.is_file():
            return set()
        starts = range(0, placed.stat().st_size, BLOCK_SIZE)
        return {
            bytes.fromhex(self._content.put(_stored(placed, start, BLOCK_SIZE))) for start in starts
        }


def _stored(file: Path, begin: int, length: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(begin)
        return stream.read(length).rstrip(b"\0")
