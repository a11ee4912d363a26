"""The URLs for downloading and uploading blocks, and rules for their strictness."""

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
    """Optional behavior of Modal's server; without a rule the stand-in is lenient.

    sends_digests: send the SHA-256 of each block as it is stored: with and without its trailing
    zeros. needs_receipts: a block exists only if the request has its receipt, or if the file at
    that path has it. puts_per_answer: the URLs of an answer expire after so many uploads.
    """

    sends_digests: bool = False
    needs_receipts: bool = False
    puts_per_answer: int | None = None


@dataclass(frozen=True)
class Download:
    """The file that the URLs of one answer serve: as it was, even if it is replaced meanwhile."""

    file: Path
    start: int
    length: int
    omits_zeros: bool  # the client pads short blocks with zeros


@dataclass(frozen=True)
class Slice:
    """A block, or a part of one."""

    file: Path
    begin: int
    length: int
    headers: dict[str, str]


class Blocks:
    """Create URLs and serve them."""

    def __init__(self, content: Content, scratch: Path) -> None:
        self.rules = Rules()
        self.url = ""
        self._content = content
        self._scratch = scratch
        self._downloads: dict[str, Download] = {}
        self._puts: Counter[str] = Counter()

    def to_read(self, file: Path, start: int, length: int, omits_zeros: bool) -> list[str]:
        """Return a URL for each block of the range; ``length`` ends within the file."""
        token = new_id("download")
        held = self._scratch / token
        os.link(
            file, held
        )  # blocks on Modal never change: a file replaced during a download is still read as one
        self._downloads[token] = Download(held, start, length, omits_zeros)
        count = -(-(start + length) // BLOCK_SIZE) - start // BLOCK_SIZE if length else 0
        return [f"{self.url}/block/{token}/{index}" for index in range(count)]

    def read(self, token: str, index: int) -> Slice | None:
        """Return the content for a URL of ``to_read``; None if it expired."""
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
        """Return the URL for a missing block; those with the same ``answer`` expire together."""
        return f"{self.url}/block/{sha256.hex()}?answer={answer}"

    def takes(self, answer: str) -> bool:
        """Return whether a URL of ``answer`` is still valid; called once per upload."""
        self._puts[answer] += 1
        return (
            self.rules.puts_per_answer is None or self._puts[answer] <= self.rules.puts_per_answer
        )

    def has(self, sha256: bytes, receipt: bytes, placed: Path) -> bool:
        """Return whether the file ``placed`` has the block already."""
        if self.rules.needs_receipts and receipt != sha256:
            return sha256 in self._of(placed)
        return self._content.has(sha256.hex())

    def _of(self, placed: Path) -> set[bytes]:
        """Return the file's blocks, and remember them by their SHA-256."""
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
