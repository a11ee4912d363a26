"""Detect the format of a source file by its content, and read its decompressed bytes.

An extension is never believed: C4 names JSON lines ``.json.gz``. Text, JSON lines (both also
compressed) and Parquet are read; everything else is refused by name.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import shlex
import stat
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from corpus import DataError, printable
from corpus.shards import MAGIC
from job.files import kind_of_file

HEAD_BYTES = 1 << 16  # read of each file to tell what it is

Compression = Literal["", "gzip", "bzip2", "xz", "zstd"]
Kind = Literal["text", "jsonl", "json array", "parquet", "empty"]

EXTENSIONS: dict[str, Compression] = {
    ".gz": "gzip", ".gzip": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd",
}  # fmt: skip
# bzip2's blocks begin after BZh and a digit; zstd may begin with a skippable frame.
COMPRESSED: list[tuple[Compression, re.Pattern[bytes]]] = [
    ("gzip", re.compile(rb"\x1f\x8b")),
    ("bzip2", re.compile(rb"BZh.(1AY&SY|\x17rE8P\x90)", re.DOTALL)),
    ("xz", re.compile(rb"\xfd7zXZ\0")),
    ("zstd", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")),
]
UNPACK = "unpack it and name the result"
# What to do with a file → its first bytes → what it is.
REFUSED_FORMATS: dict[str, dict[bytes, str]] = {
    "fetch the file: `git lfs pull`": {
        b"version https://git-lfs.github.com/spec/": "a Git LFS pointer, not the file itself",
    },
    UNPACK: {
        b"PK\x03\x04": "a zip archive", b"PK\x05\x06": "an empty zip archive",
        b"PK\x07\x08": "a zip archive in parts", b"7z\xbc\xaf\x27\x1c": "a 7z archive",
        b"Rar!\x1a\x07": "a RAR archive", b"!<arch>\n": "an ar archive",
        b"\x04\x22\x4d\x18": "compressed with lz4", b"\x02\x21\x4c\x18": "compressed with lz4",
        b"\x1f\x9d": "compressed with compress", b"\x1f\xa0": "compressed with LZH",
        b"\x5d\0\0": "compressed with LZMA", b"LZIP": "compressed with lzip",
        b"\x89LZO\0": "compressed with lzop", b"\xff\x06\0\0sNaPpY": "compressed with Snappy",
        b"x\x9c": "compressed with zlib", b"x\xda": "compressed with zlib",
    },
    "decrypt it": {b"PARE": "encrypted Parquet"},
    "convert it to Parquet or JSON lines": {
        b"ARROW1": "an Arrow file", b"\xff\xff\xff\xff": "an Arrow stream",
        b"FEA1": "a Feather file", b"ORC": "an ORC file", b"Obj\x01": "an Avro file",
        b"SEQ\x06": "a Hadoop sequence file",
    },
    "export its text": {
        b"\x89HDF\r\n\x1a\n": "an HDF5 file", b"SQLite format 3\0": "an SQLite database",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an Office document",
        b"{\\rtf": "a rich text document",
    },
    "extract its text: `pdftotext`": {b"%PDF-": "a PDF"},
    "give the text itself": {
        b"\x93NUMPY": "a NumPy array", b"MMIDIDX\0": "a Megatron index",
        b"\xff\xd8\xff": "an image", b"\x89PNG\r\n": "an image", b"GIF8": "an image",
        b"\x7fELF": "a program", b"GGUF": "a GGUF network",
        b"\x80\x02": "a pickle", b"\x80\x03": "a pickle", b"\x80\x04\x95": "a pickle",
        b"\x80\x05\x95": "a pickle",
    },
    "put train and val shards into a dataset's folder and leave out data.source": {
        struct.pack("<2i", MAGIC, 1): "a shard of tokens",
    },
    "convert it: `iconv -f UTF-32 -t UTF-8 {path} > NEW-FILE`": {
        codecs.BOM_UTF32_LE: "UTF-32 text", codecs.BOM_UTF32_BE: "UTF-32 text",
    },
    # After UTF-32: its little-endian mark begins with that of UTF-16.
    "convert it: `iconv -f UTF-16 -t UTF-8 {path} > NEW-FILE`": {
        codecs.BOM_UTF16_LE: "UTF-16 text", codecs.BOM_UTF16_BE: "UTF-16 text",
    },
}  # fmt: skip
SAFETENSORS = re.compile(rb'.{2,5}\0{3,6}\{"', re.DOTALL)  # its header's length in 8 bytes
OBJECT = re.compile(rb'\{\s*(?:"(?:[^"\\]|\\.)*"\s*:|\}\s*$)')  # the beginning of a JSON object
ARRAY = re.compile(rb"\[\s*\{\s*[\"}]")  # of a JSON array of objects


class Unreadable(DataError):
    """A source file that cannot be read as text; ``problem`` says what it is, in a phrase."""

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        self.problem = problem
        super().__init__(f"{printable(path)}: {problem}; {remedy}")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, and its format."""

    path: Path
    name: str  # relative to the source's root, with /: the document's name in the split
    size: int  # bytes on the disk; of Parquet, rows
    kind: Kind
    compression: Compression = ""
    has_column: bool = True  # of JSON lines: the first rows have the column that holds the text
    is_named_jsonl: bool = False
    is_blank: bool = False  # white space alone: not enough for a validation set
    is_binary: bool = False  # an unknown format: it has zero bytes


def refuse_known_formats(path: Path) -> None:
    """Raise Unreadable if ``path`` is a Git LFS pointer, an archive or another known format."""
    with path.open("rb") as file:
        _refuse(path, file.read(HEAD_BYTES))


def inspect(path: Path, name: str, column: str) -> SourceFile:
    """Return the format of ``path``. Raises Unreadable if it is not text, OSError if unreadable."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable(path, kind_of_file(status.st_mode), "give a regular file")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(b"PAR1"):
        return SourceFile(path, name, _parquet_rows(path), "parquet")
    extension, compression, problem = Path(name.lower()).suffix, _compression(head), ""
    if compression:
        with decompressed(path, compression) as stream:
            head = stream.read(HEAD_BYTES)
        if (twice := _compression(head)) or head.startswith(b"PAR1"):
            raise Unreadable(path, f"{twice or 'Parquet'} inside {compression}", UNPACK)
        if extension in EXTENSIONS:
            extension = Path(name.lower()).with_suffix("").suffix
    elif extension in EXTENSIONS:
        problem = f"can't be unpacked: named {extension}, but not {EXTENSIONS[extension]} data"
    elif extension in (".parquet", ".pq"):
        problem = "can't be read as Parquet: it does not begin with PAR1"
    _refuse(path, head)
    if SAFETENSORS.match(head):
        raise Unreadable(path, "a safetensors file", "give the text itself")
    if head and problem:
        remedy = "download it again, or rename it if it is plain text"
        raise DataError(f"{printable(path)}: {problem}; {remedy}")
    text, complete = head.removeprefix(codecs.BOM_UTF8), len(head) < HEAD_BYTES
    if not text:
        return SourceFile(path, name, status.st_size, "empty", compression)
    kind, has_column = _json_kind(text.lstrip(), column, complete)
    if is_named_jsonl := extension in (".jsonl", ".ndjson"):
        kind = "jsonl"
    is_blank, is_binary = complete and not text.strip(), b"\0" in head[:8000]
    flags = (has_column, is_named_jsonl, is_blank, is_binary)
    return SourceFile(path, name, status.st_size, kind, compression, *flags)


def _compression(head: bytes) -> Compression:
    return next((name for name, magic in COMPRESSED if magic.match(head)), "")


def _refuse(path: Path, head: bytes) -> None:
    for remedy, formats in REFUSED_FORMATS.items():
        for magic, what in formats.items():
            # A text may begin with a word such as ORC; those formats have zero bytes.
            is_word = len(magic) <= 4 and magic.isalnum() and b"\0" not in head
            if head.startswith(magic) and not is_word:
                raise Unreadable(path, what, remedy.format(path=shlex.quote(printable(path))))
    for start, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):  # without a mark
        # Every second byte of English text is zero, and none of the others.
        zeros, others = head[start:200:2], head[1 - start : 200 : 2]
        if len(zeros) > 8 and zeros.count(0) > 0.7 * len(zeros) and 0 not in others:
            convert = f"iconv -f {name} -t UTF-8 {shlex.quote(printable(path))} > NEW-FILE"
            raise Unreadable(path, f"{name} text", f"convert it: `{convert}`")
    is_tar = head[257:262] == b"ustar"
    if len(head) >= 512 and b"\0" in head[:512]:  # older archives have only a checksum
        with suppress(tarfile.HeaderError):
            tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
            is_tar = True
    if is_tar:
        raise Unreadable(path, "a tar archive", UNPACK)


def _json_kind(text: bytes, column: str, complete: bool) -> tuple[Kind, bool]:
    """Return what the beginning of a file is, and if its first JSON rows have ``column``."""
    if ARRAY.match(text):
        return "json array", False
    if not OBJECT.match(text):
        return "text", True
    lines = text.split(b"\n")
    if not complete and len(lines) == 1:  # the first row is longer than what was read
        return "jsonl", bool(re.search(rb'"' + re.escape(column.encode()) + rb'"\s*:', text))
    rows = [line for line in (lines if complete else lines[:-1]) if line.strip()][:2]
    objects = []
    with suppress(ValueError, RecursionError):
        for row in rows:
            objects.append(json.loads(row))
    if not objects:
        return "text", True  # an object over several lines, or braces of another language
    has_column = any(isinstance(row, dict) and column in row for row in objects)
    return ("jsonl" if has_column or len(objects) > 1 or len(rows) == 1 else "text"), has_column


def _parquet_rows(path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{printable(path)}: can't be read as Parquet: {error}") from None


@contextmanager
def decompressed(path: Path, compression: Compression) -> Iterator[BinaryIO]:
    """Open a file for reading its bytes; DataError if the compressed data is damaged or cut."""
    try:
        with cast(BinaryIO, OPENERS[compression](path)) as opened:
            yield opened
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        # Errors of the system have a number; those of gzip, bz2 and pyarrow have none.
        if isinstance(error, OSError) and (error.errno is not None or not compression):
            raise
        words = f"can't be unpacked: {error}; download it again"
        raise DataError(f"{printable(path)}: {words}") from None


def _open_zstd(path: Path) -> object:
    import pyarrow as pa  # the standard library of Python 3.11 has no zstd

    return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), 1 << 20)


OPENERS: dict[Compression, Callable[[Path], object]] = {
    "": lambda path: path.open("rb"),
    "gzip": gzip.open,
    "bzip2": bz2.open,
    "xz": lzma.open,
    "zstd": _open_zstd,
}
