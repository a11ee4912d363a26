"""The text of source files, as segments in an order that never changes.

A plain file is one document, in segments of about 1 MB; a row of JSON lines or Parquet is a
document and a segment. Text is UTF-8 bytes, unchanged except that a byte order mark is removed.
``read`` resumes from the cursor after any segment.
"""

from __future__ import annotations

import codecs
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from corpus import DataError, printable
from corpus.formats import SourceFile, decompressed

PIECE = 1 << 20  # bytes; tiktoken slows down and runs out of stack on far longer strings
LONGEST_PIECE = 1 << 24  # text with no place to cut in so many bytes is cut anywhere
SKIP_BYTES = 1 << 20

Cursor = tuple[int, int]  # index of the file; byte (text, JSON lines) or row (Parquet) in it


class Segment(NamedTuple):
    """A stretch of one document."""

    text: bytes
    first: bool  # begins the document
    file: int
    offset: int
    after: Cursor


def read(files: Sequence[SourceFile], column: str, start: Cursor = (0, 0)) -> Iterator[Segment]:
    """Yield the segments from ``start``; ``column`` holds the text of rows.

    Raises DataError for a file that cannot be read, with its name and place.
    """
    for index in range(start[0], len(files)):
        file, offset = files[index], start[1] if index == start[0] else 0
        if file.kind == "parquet":
            for row, text in enumerate(_parquet_rows(file, offset, column), offset):
                yield Segment(text, True, index, row, (index, row + 1))
            continue
        is_rows = file.kind == "jsonl"
        try:
            with decompressed(file.path, file.compression) as stream:
                _skip(stream, offset)
                for piece in stream if is_rows else _pieces(stream):
                    text, end = piece, offset + len(piece)
                    if offset == 0:
                        text = piece.removeprefix(codecs.BOM_UTF8)
                    start_of_text = end - len(text)  # after a byte order mark
                    if is_rows:
                        text = _json_row(text, file, offset, column)
                    yield Segment(text, is_rows or offset == 0, index, start_of_text, (index, end))
                    offset = end
        except OSError as error:
            raise DataError(
                f"{printable(file.path)}: cannot be read: {error.strerror or error}"
            ) from None


def _skip(stream: BinaryIO, count: int) -> None:
    if stream.seekable():
        stream.seek(count)
        return
    while count and (block := stream.read(min(count, SKIP_BYTES))):
        count -= len(block)


def _json_row(line: bytes, file: SourceFile, offset: int, column: str) -> bytes:
    if not line.strip():
        return b""
    where = f"{printable(file.path)}: the line at byte {offset}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict) or column not in row:
        raise _missing_column(where, column, list(row) if isinstance(row, dict) else [])
    return _utf8(row[column], where, column)


def _parquet_rows(file: SourceFile, start: int, column: str) -> Iterator[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = printable(file.path) + ":"
    try:
        with pq.ParquetFile(file.path, page_checksum_verification=True) as table:
            if column not in table.schema_arrow.names:
                raise _missing_column(where, column, table.schema_arrow.names)
            for group in range(table.num_row_groups):
                size = table.metadata.row_group(group).num_rows
                if start >= size:
                    start -= size
                    continue
                found = 0
                for batch in table.iter_batches(
                    256, row_groups=[group], columns=[column], use_threads=False
                ):
                    found += len(batch)
                    for value in batch.column(0)[start:].to_pylist():
                        yield _utf8(value, where, column)
                    start = max(0, start - len(batch))
                if found != size:
                    raise DataError(
                        f"{where} damaged: row group {group} has {found} of "
                        f"{size} rows; download it again"
                    )
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        raise DataError(f"{where} damaged Parquet: {error}; download it again") from None


def _utf8(value: object, where: str, column: str) -> bytes:
    if not isinstance(value, str | None):
        raise DataError(f"{where} has {type(value).__name__}, not text, in the column '{column}'")
    return (value or "").encode(
        errors="replace"
    )  # JSON can spell half a surrogate pair, UTF-8 cannot


def _missing_column(where: str, column: str, present: list[str]) -> DataError:
    return DataError(
        f"{where} has no column '{column}'; its columns are {', '.join(present) or 'none'}; "
        "name the one that holds the text: data.text_column=NAME"
    )


def array_advice(file: SourceFile) -> str:
    """Explain that a file is a JSON array, and how to make JSON lines of it."""
    show = {"": "cat", "gzip": "zcat", "bzip2": "bzcat", "xz": "xzcat", "zstd": "zstdcat"}[
        file.compression
    ]
    return (
        f"{printable(file.path)}: an array of JSON objects, not text; make a row of each: "
        f"`{show} {shlex.quote(printable(file.path))} | jq -c '.[]' > NEW-FILE.jsonl`, "
        "and name that"
    )


# The tokens of two pieces must be those of the whole. GPT-2's pattern always splits between a
# character that is not white space and white space: no alternative spans that place or, except
# for white space before it, looks beyond it. Of the spaces beyond ASCII, only U+00A0 shares a
# token with white space after it. Text without white space is cut between a letter and
# punctuation, where the pattern always splits too.
_BLACK = rb"(?:[!-~]|[\x80-\xbf](?<!\xc2\xa0))"
_CUTS = [
    re.compile(rb"(?s).*" + _BLACK + rb"(?=\n)"),
    re.compile(rb"(?s).*" + _BLACK + rb"(?=[ \t\r\n])"),
    re.compile(
        rb"(?s).*(?:[A-Za-z](?=[,.;:!?)])"
        rb"|[\xe5-\xe9][\x80-\xbf]{2}(?=\xe3\x80[\x81\x82]|\xef\xbc\x8c))"
    ),
]


def last_cut(text: bytes) -> int:
    """Return the last place where UTF-8 ``text`` can be cut with the same GPT-2 tokens, or 0."""
    return next((match.end() for cut in _CUTS if (match := cut.match(text))), 0)


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    """Yield pieces of about PIECE bytes; where one ends depends only on where it begins."""
    text, size = b"", PIECE
    while True:
        text += stream.read(max(0, size - len(text)))
        if len(text) < size:
            break
        cut = last_cut(text[:size])
        if not cut and size < LONGEST_PIECE:
            size *= 2
            continue
        while not cut or text[cut] & 0xC0 == 0x80:  # no place to cut: anywhere between characters
            cut = (cut or size) - 1
        yield text[:cut]
        text, size = text[cut:], PIECE
    if text:
        yield text
