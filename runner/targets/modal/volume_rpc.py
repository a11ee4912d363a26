"""Blocks of files on a Modal volume: their addresses, reading one, sending one.

The client's own ``read_file`` always starts at the first byte, and its upload of a block waits up
to 8.5 minutes between attempts, which nothing can interrupt. The RPCs below them can do more: one
returns the addresses of a file's blocks for any range; another returns the blocks that Modal lacks,
and creates the files once it has all. This is the only module that uses unpublished parts of the
client (1.6.4: modal/volume.py, ``_read_file_into_fileobj`` and ``_put_file_specs``): its event
loop, its HTTP session, which knows certificates and proxies, and its stub.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import ClientTimeout
from modal._utils.async_utils import synchronize_api
from modal._utils.http_utils import ClientSessionRegistry
from modal.config import config
from modal_proto import api_pb2

from runner.errors import ModalUnavailable
from runner.targets.blocks import BLOCK_SIZE, Block, MissingBlock, NewFile, OpenFile, block_ranges

BUFFER_SIZE = 1 << 20  # bytes of a body that may wait; with aiohttp's 64 KiB it pauses often
MAX_ERROR_CHARACTERS = 300  # of a refusal: the rest is a page of XML

# The digest in a Repr-Digest header (RFC 9530).
SHA256_HEADER = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]+=*):")

__all__ = ["fetch_block", "open_file", "put_files", "send_block"]


async def _open_file(volume: Any, path: str, start: int, length: int) -> OpenFile:
    # client_pads_blocks stays false: then a block comes with its trailing zeros, and a short one
    # was cut. The client, which pads with zeros, can't tell the two apart.
    request = api_pb2.VolumeGetFile2Request(
        volume_id=volume.object_id, path=path, start=start, len=length
    )
    answer = await volume.client._stub.VolumeGetFile2(request)
    # The length can be the requested one even if the file ends before.
    end = min(answer.start + answer.len, answer.size)
    ranges = zip(answer.get_urls, block_ranges(answer.start, end), strict=False)
    blocks = tuple(
        Block(a, b - a, url, a % BLOCK_SIZE == 0 and b == min(a + BLOCK_SIZE, answer.size))
        for url, (a, b) in ranges
    )
    if sum(block.length for block in blocks) != max(0, end - answer.start):
        raise ConnectionError(
            f"Modal sent {len(blocks)} addresses for bytes {answer.start} to {end} of {path}"
        )
    return OpenFile(answer.size, blocks)


async def _fetch_body(block: Block) -> tuple[bytes, bytes | None]:
    """Return the body and the SHA-256 that came with it. Raises ConnectionError if it is wrong."""
    session = ClientSessionRegistry.get_session()  # type: ignore[no-untyped-call]
    # A transfer may take as long as it needs; a connection that stalls is closed.
    timeout = ClientTimeout(sock_read=config["volume_block_read_timeout"] or None)
    chunks, size = [], 0
    async with session.get(block.url, timeout=timeout, read_bufsize=BUFFER_SIZE) as response:
        await _check_status(response)
        async for chunk in response.content.iter_any():
            chunks.append(chunk)
            size += len(chunk)
            if size > block.length:
                raise _wrong_block(block, size)
        return b"".join(chunks), _parse_digest(response.headers.get("Repr-Digest", ""))


def fetch_block(block: Block) -> tuple[bytes, bool]:
    """Return the body, and whether a digest verifies it. Raises ConnectionError if it is wrong."""
    body, expected = fetch_body(block)
    if expected is None:
        return body, False
    # Hashed here, in the caller's thread, while the client's only thread receives other blocks.
    # Modal may send the digest of the block without its trailing zeros.
    forms = (body, body.rstrip(b"\0"))
    is_verified = any(hashlib.sha256(form).digest() == expected for form in forms)
    if not is_verified and block.is_complete:
        raise _wrong_block(block, len(body))
    return body, is_verified


def _wrong_block(block: Block, size: int) -> ConnectionError:
    return ConnectionError(
        f"Modal sent {size} bytes that are not the block of {block.length} bytes"
    )


def _parse_digest(header: str) -> bytes | None:
    """Return the SHA-256 in a Repr-Digest header; None if it has no valid one."""
    digests = SHA256_HEADER.findall(header)
    try:
        digest = base64.b64decode(digests[-1], validate=True) if digests else b""
    except binascii.Error:
        return None
    return digest if len(digest) == hashlib.sha256().digest_size else None


async def _check_status(response: Any) -> None:
    """Raise ModalUnavailable for a refusal: another address, or the same one later, may work."""
    if response.status >= 400:
        body = await response.content.read(MAX_ERROR_CHARACTERS)
        message = " ".join(body.decode(errors="replace").split())
        raise ModalUnavailable(
            f"a block is unavailable: HTTP {response.status} {response.reason}: {message}"
        )


async def _put_files(
    volume: Any, files: Sequence[NewFile], receipts: Mapping[bytes, bytes]
) -> list[MissingBlock]:
    """Create all files at once if Modal has their blocks; else return the blocks that it lacks.

    ``receipts`` holds Modal's answers to the blocks sent, by SHA-256.
    """
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

fetch_body = synchronize_api(_fetch_body)  # type: ignore[no-untyped-call]

put_files = synchronize_api(_put_files)  # type: ignore[no-untyped-call]

send_block = synchronize_api(_send_block)  # type: ignore[no-untyped-call]
