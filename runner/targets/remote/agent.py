"""Serve the volumes of a box over stdin and stdout, in a container of the job's image.

Needs the standard library alone: the runner sends this file's text to ``python -c``. The agent
ends with its stdin, so nothing stays on the box when a connection is lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

FRAME = struct.Struct(">IQ")  # of a request or an answer: bytes of zipped JSON, bytes after it
ROOT = "/vol"
BLOCK_SIZE = 8 * 1024 * 1024
BLOCKS = ROOT + "/store/blocks"  # content by SHA-256: what arrived before is not sent again
BLOCK_AGE_S = 30 * 86400
RECORDS = (
    *("run.json", "launch.json", "tags.json", "exit_status", "heartbeat", "latest", "sweep.json"),
)


def resolve(volume: str, path: str) -> str:
    """Return the path of a volume's file. Raises ValueError if it is outside."""
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise ValueError(path + " is outside the volume")
    return os.path.join(ROOT, volume, path).rstrip("/")


def describe(path: str, name: str) -> list[Any]:
    """Return name, size, time and kind of a file."""
    status = os.lstat(path)
    kind = "directory" if os.path.isdir(path) else "file" if os.path.isfile(path) else "other"
    kind = "symlink" if os.path.islink(path) else kind
    return [name, status.st_size, int(status.st_mtime), kind]


def listing(volume: str, path: str, recursive: bool) -> list[list[Any]]:
    """Return the entries of a folder, or of the file itself."""
    top = resolve(volume, path)
    if not os.path.isdir(top):
        return [describe(top, path)]
    entries = []
    for folder, folders, names in os.walk(top):
        for name in folders + names:
            full = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):
                entries.append(describe(full, os.path.relpath(full, os.path.join(ROOT, volume))))
        if not recursive:
            break
    return entries


def read(volume: str, path: str, start: int, length: int | None) -> tuple[int, bytes]:
    """Return the size of a file, and bytes of it."""
    with open(resolve(volume, path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(start)
        return size, file.read() if length is None else file.read(length)


def stage(target: str, size: int, blocks: Iterable[bytes]) -> str:
    """Write a file of ``size`` bytes beside ``target``; return its path.

    All ``blocks`` but the last have BLOCK_SIZE bytes, trailing zeros omitted.
    """
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.tmp")
    with open(temporary, "wb") as file:
        for index, block in enumerate(blocks):
            file.seek(index * BLOCK_SIZE)
            file.write(block)
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def write(volume: str, path: str, content: bytes) -> None:
    """Replace a file at once."""
    target = resolve(volume, path)
    os.replace(stage(target, len(content), [content]), target)


def remove(volume: str, path: str) -> None:
    """Delete a file or a folder."""
    target = resolve(volume, path)
    if os.path.isdir(target) and not os.path.islink(target):
        hidden = os.path.join(os.path.dirname(target), f".replaced_{os.path.basename(target)}")
        shutil.rmtree(hidden, ignore_errors=True)  # of a removal that was interrupted
        os.rename(target, hidden)  # if this is interrupted, no part keeps the name
        shutil.rmtree(hidden)
    else:
        os.unlink(target)


def block_path(digest: str) -> str:
    """Return the path of a stored block."""
    if len(digest) != 64 or not digest.isalnum():
        raise ValueError("not a digest: " + digest)
    return os.path.join(BLOCKS, digest[:2], digest)


def stored(digest: str) -> bytes:
    """Return a stored block, which counts as used now."""
    os.utime(block_path(digest))
    with open(block_path(digest), "rb") as block:
        return block.read()


def store(digests: Sequence[str], sizes: Sequence[int], content: bytes) -> None:
    """Keep blocks that arrived intact."""
    content = zlib.decompress(content)
    for digest, size in zip(digests, sizes, strict=False):
        block, content = content[:size], content[size:]
        if hashlib.sha256(block).hexdigest() != digest:
            raise ValueError("a block arrived damaged")
        write("store", f"blocks/{digest[:2]}/{digest}", block)


def put(volume: str, files: list[Any] | None, tree: str) -> list[list[int]]:
    """Create the files at once from stored blocks, or return the numbers of missing blocks.

    The list of a tree's files is kept until they are complete: without ``files``, it is the last.
    """
    pending = f"pending/{tree}.json"
    if files is None:
        if os.path.exists(resolve(volume, ".complete")):  # the answer was lost
            return []
        files = json.loads(read("store", pending, 0, None)[1])
    missing = [
        [number, index]
        for number, (_, _, _, blocks) in enumerate(files)
        for index, digest in enumerate(blocks)
        if not os.path.isfile(block_path(digest))
    ]
    if missing:
        if tree:
            write("store", pending, json.dumps(files).encode())
        return missing
    ready = []
    for path, size, mode, blocks in files:
        target = resolve(volume, path)
        temporary = stage(target, size, map(stored, blocks))
        os.chmod(temporary, mode)
        ready.append((temporary, target))
    for temporary, target in ready:
        os.replace(temporary, target)
    if tree:  # its blocks stay, so that an edit sends only what changed
        write(volume, ".complete", b"")
        with contextlib.suppress(FileNotFoundError):
            remove("store", pending)
        return []
    for _, _, _, blocks in files:
        for digest in blocks:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(block_path(digest))
    return []


def records() -> tuple[None, bytes]:
    """Return the small files of each run with their times, as compressed JSON."""
    runs = {}
    for entry in os.scandir(ROOT + "/checkpoints"):
        if not entry.is_dir():
            continue
        files = {}
        for name in RECORDS:
            path = os.path.join(entry.path, name)
            if not os.path.isfile(path):  # opening a FIFO would wait for a writer
                continue
            with (
                contextlib.suppress(OSError),
                open(path, encoding="utf-8", errors="replace") as file,
            ):
                files[name] = [file.read(), os.fstat(file.fileno()).st_mtime]
        runs[entry.name] = files
    return None, zlib.compress(json.dumps(runs).encode())


def expire() -> None:
    """Delete blocks that no tree has used for a while."""
    for folder, _, names in os.walk(BLOCKS):
        for name in names:
            with contextlib.suppress(OSError):
                if time.time() - os.stat(os.path.join(folder, name)).st_mtime > BLOCK_AGE_S:
                    os.unlink(os.path.join(folder, name))


OPERATIONS: dict[str, Callable[..., Any]] = {
    operation.__name__: operation
    for operation in (listing, read, write, remove, store, put, records, expire)
}


def answer(request: dict[str, Any], content: bytes) -> tuple[Any, bytes]:
    """Carry out a request; return its result and bytes."""
    operation = OPERATIONS[request.pop("op")]
    if operation in (write, store):
        request["content"] = content
    result = operation(**request)
    return result if isinstance(result, tuple) else (result, b"")


def main() -> None:
    """Answer requests until stdin ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(b"ready\n")
    answers.flush()
    while len(sizes := requests.read(FRAME.size)) == FRAME.size:
        length, size = FRAME.unpack(sizes)
        request = json.loads(zlib.decompress(requests.read(length)))
        content = requests.read(size)
        try:
            result, body = answer(request, content)
            reply = {"result": result}
        except (OSError, ValueError) as error:
            body, reply = b"", {"error": type(error).__name__, "message": str(error)}
        packed = zlib.compress(json.dumps(reply).encode())
        answers.write(FRAME.pack(len(packed), len(body)) + packed + body)
        answers.flush()


if __name__ == "__main__":
    main()
