"""The blocks of files on a Modal volume: where they are, reading one, sending one.

The client's own ``read_file`` begins at the first byte, always, and its upload of a block waits up to 8.5
minutes between attempts, which nothing can end. What they are made of can do more: one call answers with the
addresses of a file's blocks, for any range; another says which blocks Modal has not got, and puts files into
their places once it has them all. This module is the only one that uses what the client does not publish
(1.6.4: modal/volume.py, ``_read_file_into_fileobj`` and ``_put_file_specs``): its loop, its HTTP session, which
knows certificates and proxies, and its stub. It imports modal.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientTimeout
from modal._utils.async_utils import synchronize_api
from modal._utils.http_utils import ClientSessionRegistry
from modal.config import config
from modal_proto import api_pb2

from runner.errors import ModalUnavailable

BLOCK_SIZE = 8 * 1024 * 1024  # bytes; volumes of version 2 cut files by it

ERROR_CHARACTERS = 300  # of what a refusal says: the rest is a page of XML

SHA256_OF_BODY = re.compile(
    r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]+=*):"
)  # in a Repr-Digest (RFC 9530)

__all__ = [
    "BLOCK_SIZE",
    "Block",
    "MissingBlock",
    "NewFile",
    "OpenFile",
    "fetch_block",
    "open_file",
    "put_files",
    "send_block",
]


@dataclass(frozen=True)
class Block:
    """A piece of a file, at ``start``, that one address holds: a block (``is_whole``), or what the range that
    was asked for has of it."""

    start: int
    length: int
    url: str
    is_whole: bool


@dataclass(frozen=True)
class OpenFile:
    """A file as it was when it was asked for: its ``size`` in bytes, and the blocks of the range asked for.
    Blocks never change, so a file that is replaced meanwhile is still read as one."""

    size: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class NewFile:
    """A file to be: its path in the volume, ``size`` in bytes, permission bits, and of each BLOCK_SIZE of it
    the SHA-256 without trailing zeros."""

    path: str
    size: int
    mode: int
    blocks: tuple[bytes, ...]


@dataclass(frozen=True)
class MissingBlock:
    """A block that Modal has not got: the numbers of the file and of the block, and where to send it."""

    file: int
    block: int
    url: str


async def _open_file(volume: Any, path: str, start: int, length: int) -> OpenFile:
    # client_pads_blocks stays false: then a block comes with its trailing zeros, and one that is too short
    # was cut. The client's own way, to fill up with zeros, can't tell the two apart.
    request = api_pb2.VolumeGetFile2Request(
        volume_id=volume.object_id, path=path, start=start, len=length
    )
    answer = await volume.client._stub.VolumeGetFile2(request)
    # The length may be that of the request, also where the file ends before.
    end = min(answer.start + answer.len, answer.size)
    blocks = tuple(_blocks(answer.get_urls, answer.start, end, answer.size))
    if sum(block.length for block in blocks) != max(0, end - answer.start):
        raise ConnectionError(
            f"{len(blocks)} addresses came for bytes {answer.start} to {end} of {path}"
        )
    return OpenFile(answer.size, blocks)


def _blocks(urls: Sequence[str], start: int, end: int, size: int) -> Iterator[Block]:
    """The pieces of a file of ``size`` bytes from ``start`` to ``end``, cut where its blocks begin."""
    for url in urls:
        block_end = (start // BLOCK_SIZE + 1) * BLOCK_SIZE
        stop = min(end, block_end)
        if stop <= start:
            return
        yield Block(
            start, stop - start, url, start % BLOCK_SIZE == 0 and stop == min(block_end, size)
        )
        start = stop


async def _fetch_block(block: Block) -> tuple[bytes, bool]:
    """What came, and whether it is known to be the block. Raises ConnectionError for what can't be it."""
    session = ClientSessionRegistry.get_session()  # type: ignore[no-untyped-call]
    # A transfer may take as long as it needs; a connection that brings nothing more is left.
    timeout = ClientTimeout(sock_read=config["volume_block_read_timeout"] or None)
    async with session.get(block.url, timeout=timeout) as response:
        await _check_status(response)
        body = await response.content.read(block.length + 1)
        while len(body) <= block.length and (more := await response.content.read(block.length + 1)):
            body += more
        expected = _sha256_in(response.headers.get("Repr-Digest", ""))
    # The digest may be that of the block as Modal keeps it: whole, and without its trailing zeros.
    is_it = expected in (hashlib.sha256(body).digest(), hashlib.sha256(body.rstrip(b"\0")).digest())
    if len(body) > block.length or (expected and not is_it and block.is_whole):
        raise ConnectionError(
            f"{len(body)} bytes came that are not the block of {block.length} bytes"
        )
    return body, is_it


def _sha256_in(header: str) -> bytes | None:
    """The SHA-256 in a Repr-Digest; None where there is none that can be read."""
    found = SHA256_OF_BODY.findall(header)
    try:
        digest = base64.b64decode(found[-1], validate=True) if found else b""
    except binascii.Error:
        return None
    return digest if len(digest) == hashlib.sha256().digest_size else None


async def _check_status(response: Any) -> None:
    """Raise Unavailable for a refusal: another address, or the same one later, may serve."""
    if response.status >= 400:
        said = " ".join(
            (await response.content.read(ERROR_CHARACTERS)).decode(errors="replace").split()
        )
        raise ModalUnavailable(
            f"a block is unavailable: HTTP {response.status} {response.reason}: {said}"
        )


async def _put_files(
    volume: Any, files: Sequence[NewFile], receipts: Mapping[bytes, bytes]
) -> list[MissingBlock]:
    """Put the files into their places, all at once, if Modal has all blocks; else say which it has not.
    ``receipts`` holds what it answered to those sent, by their SHA-256."""
    request = api_pb2.VolumePutFiles2Request(volume_id=volume.object_id)
    for file in files:
        added = request.files.add(path=f"/{file.path}", size=file.size, mode=file.mode)
        for digest in file.blocks:
            added.blocks.add(contents_sha256=digest, put_response=receipts.get(digest))
    answer = await volume.client._stub.VolumePutFiles2(request)
    return [MissingBlock(b.file_index, b.block_index, b.put_url) for b in answer.missing_blocks]


async def _send_block(url: str, content: bytes) -> bytes:
    session = ClientSessionRegistry.get_session()  # type: ignore[no-untyped-call]
    async with session.put(url, data=content) as response:
        await _check_status(response)
        return bytes(await response.content.read())


open_file = synchronize_api(_open_file)  # type: ignore[no-untyped-call]

fetch_block = synchronize_api(_fetch_block)  # type: ignore[no-untyped-call]

put_files = synchronize_api(_put_files)  # type: ignore[no-untyped-call]

send_block = synchronize_api(_send_block)  # type: ignore[no-untyped-call]
