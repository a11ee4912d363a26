"""Reading a part of a file on a Modal volume.

The client's own ``read_file`` begins at the first byte, always. What it is made of can do more: one call
answers with the addresses of a file's blocks, for any range. This module is the only one that uses what the
client does not publish (1.6.4: modal/volume.py, ``_read_file_into_fileobj``), and it imports modal.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from modal._utils.async_utils import synchronize_api
from modal._utils.blob_utils import BLOCK_SIZE
from modal._utils.http_utils import ClientSessionRegistry
from modal.volume import (
    _block_download_timeout,
    _expected_block_lengths,
    _parse_repr_digest,
    _raise_on_block_response_error,
    _Volume,
)
from modal_proto import api_pb2

__all__ = ["BLOCK_SIZE", "Block", "OpenFile", "fetch_block", "open_file"]


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


open_file = synchronize_api(_open_file)  # type: ignore[no-untyped-call]
fetch_block = synchronize_api(_fetch_block)  # type: ignore[no-untyped-call]
