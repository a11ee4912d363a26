"""What a source file holds, told by its content; and its bytes, decompressed.

An extension is never believed: C4 names JSON lines ``.json.gz``, and a failed download is often a
page of HTML named ``.parquet``. Read are text, JSON lines and Parquet; text and JSON lines also
compressed with gzip, bzip2, xz or zstd. Everything else is refused by name.
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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from corpus import DataError, printable
from corpus.shards import MAGIC

HEAD_BYTES = 1 << 16  # read of each file to tell what it is

Compression = Literal["", "gzip", "bzip2", "xz", "zstd"]
Kind = Literal["text", "jsonl", "json array", "parquet", "empty"]

COMPRESSIONS: dict[bytes, Compression] = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
BZIP2_BLOCKS = (
    bytes.fromhex("314159265359"),
    bytes.fromhex("177245385090"),
)  # after BZh and a digit
EXTENSIONS: dict[str, Compression] = {
    ".gz": "gzip", ".gzip": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd",
}  # fmt: skip
UNPACK = "unpack it and name the result"
UTF16_HELP = "convert it: `iconv -f UTF-16 -t UTF-8 {path} > NEW-FILE`"
UTF32_HELP = "convert it: `iconv -f UTF-32 -t UTF-8 {path} > NEW-FILE`"
# (offset, first bytes, what the file is, what to do)
REFUSED: list[tuple[int, bytes, str, str]] = [
    (0, b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file itself",
     "fetch the file: `git lfs pull`"),
    (0, b"PK\x03\x04", "a zip archive", UNPACK),
    (0, b"PK\x05\x06", "an empty zip archive", UNPACK),
    (0, b"PK\x07\x08", "a zip archive in parts", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (0, b"!<arch>\n", "an ar archive", UNPACK),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", UNPACK),
    (0, b"\x02\x21\x4c\x18", "compressed with lz4", UNPACK),
    (0, b"\x1f\x9d", "compressed with compress", UNPACK),
    (0, b"\x1f\xa0", "compressed with LZH", UNPACK),
    (0, b"\x5d\0\0", "compressed with LZMA", UNPACK),
    (0, b"LZIP", "compressed with lzip", UNPACK),
    (0, b"\x89LZO\0", "compressed with lzop", UNPACK),
    (0, b"\xff\x06\0\0sNaPpY", "compressed with Snappy", UNPACK),
    (0, b"PARE", "encrypted Parquet", "decrypt it"),
    (0, b"ARROW1", "an Arrow file", "convert it to Parquet or JSON lines"),
    (0, b"\xff\xff\xff\xff", "an Arrow stream", "convert it to Parquet or JSON lines"),
    (0, b"FEA1", "a Feather file", "convert it to Parquet or JSON lines"),
    (0, b"ORC", "an ORC file", "convert it to Parquet or JSON lines"),
    (0, b"Obj\x01", "an Avro file", "convert it to Parquet or JSON lines"),
    (0, b"SEQ\x06", "a Hadoop sequence file", "convert it to Parquet or JSON lines"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "export its text"),
    (0, b"SQLite format 3\0", "an SQLite database", "export its text"),
    (0, b"\x93NUMPY", "a NumPy array", "give the text itself"),
    (0, b"%PDF-", "a PDF", "extract its text: `pdftotext`"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document", "export its text"),
    (0, b"{\\rtf", "a rich text document", "export its text"),
    (0, b"MMIDIDX\0", "a Megatron index", "give the text itself"),
    (0, struct.pack("<2i", MAGIC, 1), "a shard of tokens",
     "put train and val shards into a dataset's folder and leave out data.source"),
    (0, b"\xff\xd8\xff", "an image", "give text"),
    (0, b"\x89PNG\r\n", "an image", "give text"),
    (0, b"GIF8", "an image", "give text"),
    (0, b"\x7fELF", "a program", "give text"),
    (0, codecs.BOM_UTF32_LE, "UTF-32 text", UTF32_HELP),
    (0, codecs.BOM_UTF32_BE, "UTF-32 text", UTF32_HELP),
    (0, codecs.BOM_UTF16_LE, "UTF-16 text", UTF16_HELP),
    (0, codecs.BOM_UTF16_BE, "UTF-16 text", UTF16_HELP),
]  # fmt: skip
OBJECT = re.compile(rb'\{\s*(?:"(?:[^"\\]|\\.)*"\s*:|\}\s*$)')  # the beginning of a JSON object
ARRAY = re.compile(rb"\[\s*\{\s*[\"}]")  # of a JSON array of objects


class Unreadable(DataError):
    """A source file that cannot be read as text; ``what`` says what it is, in a phrase."""

    def __init__(self, path: Path, what: str, remedy: str) -> None:
        self.what = what
        super().__init__(f"{printable(path)}: {what}; {remedy}")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, and what it holds."""

    path: Path
    name: str  # relative to the source's root, with /: the document's name in the split
    size: int  # bytes on the disk; of Parquet, rows
    kind: Kind
    compression: Compression = ""
    has_column: bool = True  # of JSON lines: the first rows have the column that holds the text
    is_named_jsonl: bool = False
    is_blank: bool = False  # white space alone: not enough for a validation set
    is_binary: bool = False  # an unknown format: it has zero bytes


def refuse_other_formats(path: Path) -> None:
    """Raise Unreadable if ``path`` is a Git LFS pointer, an archive or another known format."""
    with path.open("rb") as file:
        _refuse(path, file.read(HEAD_BYTES))


def inspect(path: Path, name: str, column: str) -> SourceFile:
    """Tell what ``path`` holds. Raises Unreadable if it is not text, OSError on a read error."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable(path, _file_type(status.st_mode), "give a regular file")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    extension = Path(name.lower()).suffix
    if head.startswith(b"PAR1"):
        return SourceFile(path, name, _parquet_rows(path), "parquet")
    compression = _compression(head)
    if head and (expected := EXTENSIONS.get(extension)) and not compression:
        _refuse(path, head)
        raise DataError(
            f"{printable(path)}: can't be unpacked: named {extension}, but not {expected} data; "
            "rename it if it is plain text, or download it again"
        )
    if compression:
        with decompressed(path, compression) as stream:
            head = stream.read(HEAD_BYTES)
        if (twice := _compression(head)) or head.startswith(b"PAR1"):
            raise Unreadable(path, f"{twice or 'Parquet'} inside {compression}", UNPACK)
        if extension in EXTENSIONS:
            extension = Path(name.lower()).with_suffix("").suffix
    elif head and extension in (".parquet", ".pq"):
        _refuse(path, head)
        raise DataError(
            f"{printable(path)}: can't be read as Parquet: it does not begin with PAR1; "
            "download it again, or rename it if it is plain text"
        )
    _refuse(path, head)
    text = head.removeprefix(codecs.BOM_UTF8)
    size, complete = status.st_size, len(head) < HEAD_BYTES
    if not text:
        return SourceFile(path, name, size, "empty", compression)
    named_jsonl = extension in (".jsonl", ".ndjson")
    kind, has_column = _json_kind(text, column, complete)
    return SourceFile(
        path,
        name,
        size,
        "jsonl" if named_jsonl else kind,
        compression,
        has_column=has_column,
        is_named_jsonl=named_jsonl,
        is_blank=complete and not text.strip(),
        is_binary=b"\0" in head[:8000],
    )


def _compression(head: bytes) -> Compression:
    for magic, found in COMPRESSIONS.items():
        if head.startswith(magic) and (found != "bzip2" or head[4:10] in BZIP2_BLOCKS):
            return found
    # zstd may begin with a skippable frame, as pzstd and the seekable format write them.
    is_skippable = len(head) >= 4 and 0x184D2A50 <= struct.unpack("<I", head[:4])[0] <= 0x184D2A5F
    return "zstd" if is_skippable else ""


def _refuse(path: Path, head: bytes) -> None:
    for offset, magic, what, remedy in REFUSED:
        # A text may begin with a word such as ORC; those formats have zero bytes.
        is_word = len(magic) <= 4 and magic.isalnum() and b"\0" not in head
        if head[offset:].startswith(magic) and not is_word:
            raise Unreadable(path, what, remedy.format(path=shlex.quote(printable(path))))
    if len(head) >= 512 and b"\0" in head[:512]:
        try:
            tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return
        raise Unreadable(path, "a tar archive", UNPACK)


def _file_type(mode: int) -> str:
    for test, what in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(mode):
            return what
    return "a device"


def _json_kind(text: bytes, column: str, complete: bool) -> tuple[Kind, bool]:
    """Return what the beginning of a file is, and if its first JSON rows have ``column``."""
    text = text.lstrip()
    if ARRAY.match(text):
        return "json array", False
    if not OBJECT.match(text):
        return "text", True
    lines = text.split(b"\n")
    if not complete and len(lines) == 1:  # the first row is longer than what was read
        return "jsonl", bool(re.search(rb'"' + re.escape(column.encode()) + rb'"\s*:', text))
    rows = [line for line in (lines if complete else lines[:-1]) if line.strip()][:2]
    objects = []
    for row in rows:
        try:
            objects.append(json.loads(row))
        except (ValueError, RecursionError):
            break
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
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if (
            compression and error.errno is None
        ):  # gzip's and bz2's own; those of the system have a number
            raise _damaged(path, error) from None
        raise


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{printable(path)}: can't be unpacked: {error}; download it again")


class _Zstd(io.RawIOBase):
    """pyarrow's zstd stream as a file; the standard library of Python 3.11 has none."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._stream = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))
        data = self._stream.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


OPENERS: dict[Compression, Callable[[Path], object]] = {
    "": lambda path: path.open("rb"),
    "gzip": gzip.open,
    "bzip2": bz2.open,
    "xz": lzma.open,
    "zstd": lambda path: io.BufferedReader(_Zstd(path), 1 << 20),
}
