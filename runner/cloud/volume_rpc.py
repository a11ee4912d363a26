"""The blocks of files on a Modal volume: where they are, reading one, sending one.

The client's own ``read_file`` begins at the first byte, always, and its upload of a block waits up to 8.5
minutes between attempts, which nothing can end. What they are made of can do more: one call answers with the
addresses of a file's blocks, for any range; another says which blocks Modal has not got, and puts files into
their places once it has them all. This module is the only one that uses what the client does not publish
(1.6.4: modal/volume.py, ``_read_file_into_fileobj`` and ``_put_file_specs``), and it imports modal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modal._utils.async_utils import synchronize_api
from modal._utils.blob_utils import BLOCK_SIZE
from modal._utils.grpc_utils import Retry
from modal._utils.http_utils import ClientSessionRegistry
from modal.volume import (
    _block_download_timeout,
    _expected_block_lengths,
    _parse_repr_digest,
    _raise_on_block_response_error,
    _Volume,
)
from modal_proto import api_pb2

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
    """A piece of a file, at ``start``, that one address holds; at most BLOCK_SIZE bytes."""

    start: int
    length: int
    url: str


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


async def _open_file(volume: _Volume, path: str, start: int, length: int) -> OpenFile:
    # client_pads_blocks stays false: then a block comes with its trailing zeros, and one that is too short
    # was cut. The client's own way, to fill up with zeros, can't tell the two apart.
    request = api_pb2.VolumeGetFile2Request(volume_id=volume.object_id, path=path, start=start, len=length)
    answer = await volume.client._stub.VolumeGetFile2(request)
    lengths = _expected_block_lengths(answer.start, answer.len, len(answer.get_urls))
    blocks, position = [], answer.start
    for url, size in zip(answer.get_urls, lengths, strict=True):
        blocks.append(Block(position, size, url))
        position += size
    return OpenFile(answer.size, tuple(blocks))


async def _fetch_block(block: Block) -> tuple[bytes, bool]:
    session = ClientSessionRegistry.get_session()  # type: ignore[no-untyped-call]
    timeout = _block_download_timeout()  # type: ignore[no-untyped-call]
    async with session.get(block.url, timeout=timeout) as response:
        await _raise_on_block_response_error(response)
        body = await response.content.read(block.length + 1)
        while len(body) <= block.length and (more := await response.content.read(block.length + 1)):
            body += more
        expected = _parse_repr_digest(response.headers.get("Repr-Digest"))
    if len(body) > block.length or (expected and hashlib.sha256(body).digest() != expected):
        raise ConnectionError(f"{len(body)} bytes came that are not the block of {block.length} bytes")
    return body, expected is not None


async def _put_files(
    volume: _Volume, files: Sequence[NewFile], receipts: Mapping[bytes, bytes]
) -> list[MissingBlock]:
    """Put the files into their places, all at once, if Modal has all blocks; else say which it has not.
    ``receipts`` holds what it answered to those sent, by their SHA-256."""
    request = api_pb2.VolumePutFiles2Request(volume_id=volume.object_id)
    for file in files:
        added = request.files.add(path=f"/{file.path}", size=file.size, mode=file.mode)
        for digest in file.blocks:
            added.blocks.add(contents_sha256=digest, put_response=receipts.get(digest))
    answer = await volume.client._stub.VolumePutFiles2(request, retry=Retry(base_delay=1))
    return [MissingBlock(b.file_index, b.block_index, b.put_url) for b in answer.missing_blocks]


async def _send_block(url: str, content: bytes) -> bytes:
    session = ClientSessionRegistry.get_session()  # type: ignore[no-untyped-call]
    async with session.put(url, data=content) as response:
        await _raise_on_block_response_error(response)
        return bytes(await response.content.read())


open_file = synchronize_api(_open_file)  # type: ignore[no-untyped-call]
fetch_block = synchronize_api(_fetch_block)  # type: ignore[no-untyped-call]
put_files = synchronize_api(_put_files)  # type: ignore[no-untyped-call]
send_block = synchronize_api(_send_block)  # type: ignore[no-untyped-call]
