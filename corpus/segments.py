"""The text of source files, as segments in an order that never changes, and its two splits.

A plain file is one document, in segments of about 1 MB; a row of JSON lines or Parquet is a
document and a segment. Text is UTF-8 bytes, unchanged except that a byte order mark is removed.
``read`` resumes from the cursor after any segment.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from corpus import DataError, printable
from corpus.formats import SourceFile, decompressed
from corpus.shards import Split

PIECE_BYTES = 1 << 20  # bytes; tiktoken slows down and runs out of stack on far longer strings
MAX_PIECE_BYTES = 1 << 24  # text with no place to cut in so many bytes is cut anywhere
SKIP_BYTES = 1 << 20

Cursor = tuple[int, int]  # index of the file; byte (text, JSON lines) or row (Parquet) in it


class Segment(NamedTuple):
    """A stretch of one document."""

    text: bytes
    first: bool  # begins the document
    file: int
    offset: int
    after: Cursor
    split: Split = "train"


def read(files: Sequence[SourceFile], column: str, start: Cursor = (0, 0)) -> Iterator[Segment]:
    """Yield the segments from ``start``; ``column`` holds the text of rows."""
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
                    end = offset + len(piece)
                    text = piece if offset else piece.removeprefix(codecs.BOM_UTF8)
                    start_of_text = end - len(text)  # after a byte order mark
                    if is_rows:
                        text = _json_row(text, file, offset, column)
                    yield Segment(text, is_rows or offset == 0, index, start_of_text, (index, end))
                    offset = end
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{printable(file.path)}: cannot be read: {reason}") from None


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
                size, count = table.metadata.row_group(group).num_rows, 0
                if start >= size:
                    start -= size
                    continue
                for batch in table.iter_batches(256, [group], [column], use_threads=False):
                    count += len(batch)
                    for value in batch.column(0)[start:].to_pylist():
                        yield _utf8(value, where, column)
                    start = max(0, start - len(batch))
                if count != size:
                    problem = f"row group {group} has {count} of {size} rows"
                    raise DataError(f"{where} damaged: {problem}; download it again")
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        raise DataError(f"{where} damaged Parquet: {error}; download it again") from None


def _utf8(value: object, where: str, column: str) -> bytes:
    if not isinstance(value, str | None):
        raise DataError(f"{where} has {type(value).__name__}, not text, in the column '{column}'")
    # JSON can spell half a surrogate pair, which UTF-8 cannot.
    return (value or "").encode(errors="replace")


def _missing_column(where: str, column: str, present: list[str]) -> DataError:
    return DataError(
        f"{where} has no column '{column}'; its columns are {', '.join(present) or 'none'}; "
        "name the one that holds the text: data.text_column=NAME"
    )


# The tokens of two pieces must be those of the whole. GPT-2's pattern always splits between a
# character that is not white space and white space: no alternative spans that place or, except
# for white space before it, looks beyond it. Of the spaces beyond ASCII, only U+00A0 shares a
# token with white space after it. Text without white space is cut between a letter and
# punctuation, where the pattern always splits too.
_BLACK = rb"(?s).*(?:[!-~]|[\x80-\xbf](?<!\xc2\xa0))"
_PUNCTUATION = rb"(?=\xe3\x80[\x81\x82]|\xef\xbc\x8c)"
_CUTS = [
    re.compile(_BLACK + rb"(?=\n)"),
    re.compile(_BLACK + rb"(?=[ \t\r\n])"),
    re.compile(rb"(?s).*(?:[A-Za-z](?=[,.;:!?)])|[\xe5-\xe9][\x80-\xbf]{2}" + _PUNCTUATION + rb")"),
]


def last_cut(text: bytes) -> int:
    """Return the last place where UTF-8 ``text`` can be cut with the same GPT-2 tokens, or 0."""
    return next((match.end() for cut in _CUTS if (match := cut.match(text))), 0)


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    """Yield pieces of about PIECE_BYTES bytes; the end of a piece depends only on its start."""
    text, size = b"", PIECE_BYTES
    while True:
        text += stream.read(max(0, size - len(text)))
        if len(text) < size:
            break
        cut = last_cut(text[:size])
        if not cut and size < MAX_PIECE_BYTES:
            size *= 2
            continue
        while not cut or text[cut] & 0xC0 == 0x80:  # no place to cut: anywhere between characters
            cut = (cut or size) - 1
        yield text[:cut]
        text, size = text[cut:], PIECE_BYTES
    if text:
        yield text


class Splitter(Protocol):
    """Cut the segments of a source, in order, into training and validation."""

    passed: int  # characters seen so far, if the splitter counts them

    def __call__(self, segment: Segment) -> Iterator[Segment]: ...


class ByDocument:
    """Assign whole documents by a hash: of a file's name, of a row's text.

    Raises DataError if the source is a single document.
    """

    passed = 0

    def __init__(self, files: Sequence[SourceFile], val_fraction: float) -> None:
        texts = [file for file in files if file.kind == "text" and not file.is_blank]
        if len(texts) == 1 and all(file.kind == "text" for file in files):
            raise DataError(
                f"{printable(texts[0].path)}: the source is a single document, which cannot be "
                "both training and validation; use its last part for validation: data.split=tail"
            )
        ranks = [_hash_fraction(file.name.encode(errors="surrogateescape")) for file in files]
        # All of a few files can lie above the fraction: the lowest with text is always validation.
        usable = (rank for rank, file in zip(ranks, files, strict=True) if not file.is_blank)
        lowest, self._bound = min(usable, default=-1.0), val_fraction
        self._val = [rank < val_fraction or rank == lowest for rank in ranks]
        self._rows = [file.kind != "text" for file in files]

    def __call__(self, segment: Segment) -> Iterator[Segment]:
        """Yield the whole segment, with its split."""
        rows = self._rows[segment.file]
        val = _hash_fraction(segment.text) < self._bound if rows else self._val[segment.file]
        yield segment._replace(split="val" if val else "train")


class ByTail:
    """Assign the last characters of the whole text to validation (nanoGPT's split)."""

    def __init__(self, length: int, val_fraction: float, passed: int = 0) -> None:
        self.passed, self._bound = passed, int(length * (1 - val_fraction))

    def __call__(self, segment: Segment) -> Iterator[Segment]:
        """Yield the segment, in two where the validation text begins."""
        text, first = segment.text, segment.first
        count, train = count_characters(text), max(0, self._bound - self.passed)
        self.passed += count
        cut = int(np.flatnonzero(_starts_character(text))[train]) if train < count else len(text)
        if cut:
            yield segment._replace(text=text[:cut])
        if cut < len(text):
            offset, first = segment.offset + cut, first and not cut
            yield segment._replace(text=text[cut:], first=first, offset=offset, split="val")


def count_characters(text: bytes) -> int:
    """Count the characters of UTF-8 ``text``."""
    return int(np.count_nonzero(_starts_character(text)))


def _starts_character(text: bytes) -> npt.NDArray[np.bool_]:
    return np.frombuffer(text, np.int8) >= -64  # not 0x80 … 0xBF, which continue a character


def _hash_fraction(data: bytes) -> float:
    """Return a number in [0, 1) that is always the same for the same bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest(), "big") / 2**48
