"""Where text comes from: files, folders, globs, URLs, Python's standard library; plain, .jsonl or Parquet.

A source is a list of files and a sequence of Segments in an order that never changes; ``read`` goes on from
the cursor behind any of them. A plain file is one document, in segments of about 1 MB; a row of a .jsonl or
Parquet file is a document and a segment. Text is UTF-8 bytes, unchanged but for a byte order mark before the first;
``.gz`` is unpacked.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import re
import shlex
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, cast
from urllib.parse import unquote, urlsplit

from corpus import DataError, Progress, Report, Stop, never, quiet
from corpus.download import download
from job.run_record import launch_facts

PIECE = 1 << 20  # bytes; tiktoken slows down and runs out of stack on far longer strings
LONGEST_PIECE = 1 << 24  # text with no place to cut in so many bytes is cut anywhere

Cursor = tuple[int, int]  # the file's index; the byte (text, .jsonl) or row (Parquet) in it


class Segment(NamedTuple):
    """A stretch of one document."""

    text: bytes
    first: bool  # begins the document
    file: int
    offset: int
    after: Cursor


@dataclass(frozen=True)
class SourceFile:
    path: Path
    name: str  # relative to the source's root, with /: the document's name in the split
    size: int  # bytes; of Parquet, rows
    kind: Literal["text", "jsonl", "parquet"]


def find_files(
    source: str, raw: Path, *, report: Report = quiet, should_stop: Stop = never
) -> list[SourceFile]:
    """The files of ``source``, sorted by name; a URL is downloaded once into ``raw``. DataError for none."""
    root = Path(source).expanduser()
    if source == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        paths = [
            p
            for p in root.rglob("*.py")
            if not NOT_THE_LIBRARY.search(p.relative_to(root).as_posix())
        ]
        paths = [path for path in paths if _is_utf8(path)]
    elif source.startswith(("http://", "https://")):
        paths = [_downloaded(source, raw, report, should_stop)]
        root = raw
    elif root.is_dir():
        paths = [
            p for p in root.rglob("*") if not re.search(r"(^|/)\.", p.relative_to(root).as_posix())
        ]
        if binary := {path for path in paths if path.is_file() and _is_binary(path)}:
            report(
                f"left out, no text: {', '.join(p.relative_to(root).as_posix() for p in sorted(binary))}"
            )
            paths = [path for path in paths if path not in binary]
    elif root.exists():
        paths, root = [root], root.parent
    else:
        paths = [Path(match) for match in glob(str(root), recursive=True)]
        while has_magic(str(root)):
            root = root.parent
    files = [
        _source_file(path, path.relative_to(root).as_posix()) for path in paths if path.is_file()
    ]
    if not files:
        raise DataError(
            f"{source}: no file is there; data.source (--source) is a file, folder, glob or URL"
        )
    if not any(file.size for file in files):
        raise DataError(f"{source}: is empty: there is no text to learn from")
    return sorted(files, key=lambda file: file.name)


# Without tests and tools; what isn't code (pydoc_data: documentation; encodings: tables, a seventh of all);
# and what differs from one machine to the next.
NOT_THE_LIBRARY = re.compile(
    r"(^|/)(site-packages|dist-packages|tests?|idlelib|lib2to3|turtledemo|ensurepip|pydoc_data|encodings"
    r"|__pycache__|config-[^/]*|_sysconfigdata[^/]*|sitecustomize\.py|usercustomize\.py)(/|$)"
)


def _is_binary(path: Path) -> bool:
    """Whether a file found in a folder is no text, as git sees it: a zero byte near its beginning. Parquet and .gz are read."""
    if path.suffix in (".parquet", ".gz"):
        return False
    with path.open("rb") as file:
        return b"\0" in file.read(8000)


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError:
        return False
    return True


def _downloaded(url: str, raw: Path, report: Report, should_stop: Stop) -> Path:
    """The file of ``url`` in ``raw``: under its own name, which tells how it is read, behind a hash of the whole URL, for
    many a URL ends in input.txt."""
    name = unquote(urlsplit(url).path).rpartition("/")[2] or "download"
    path = raw / f"{hashlib.blake2b(url.encode(), digest_size=4).hexdigest()}-{name}"
    if not path.exists():
        report(f"downloading {url}")
        try:
            download(
                url,
                path,
                report=lambda done, total: report(Progress("downloading", done, total)),
                should_stop=should_stop,
            )
        except DataError as error:
            in_cloud = launch_facts().get("target") == "cloud"
            copy = (
                "`runner push data FILE`, then source=/vol/data/FILE"
                if in_cloud
                else "`prepare --source FILE`"
            )
            raise DataError(f"{error}. With a copy of the file here: {copy}") from None
    return path


def _source_file(path: Path, name: str) -> SourceFile:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return SourceFile(path, name, pq.read_metadata(path).num_rows, "parquet")
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: can't be read as Parquet: {error}") from None
    rows = name.removesuffix(".gz").endswith((".jsonl", ".ndjson"))
    return SourceFile(path, name, path.stat().st_size, "jsonl" if rows else "text")


def read(files: Sequence[SourceFile], column: str, start: Cursor = (0, 0)) -> Iterator[Segment]:
    """All segments from ``start`` on; ``column`` holds the text of rows. DataError for what can't be read."""
    for index in range(start[0], len(files)):
        file, offset = files[index], start[1] if index == start[0] else 0
        if file.kind == "parquet":
            for row, text in enumerate(_parquet_rows(file, offset, column), offset):
                yield Segment(text, True, index, row, (index, row + 1))
            continue
        try:
            with (
                gzip.open(file.path)
                if file.path.suffix == ".gz"
                else file.path.open("rb") as opened
            ):
                stream = cast(BinaryIO, opened)
                stream.seek(offset)
                for piece in stream if file.kind == "jsonl" else _pieces(stream):
                    text, end = piece, offset + len(piece)
                    if offset == 0:
                        text = _beginning(piece, file, files)
                    start_of_text = end - len(text)  # behind a mark
                    if file.kind == "jsonl":
                        text = _json_row(text, file, offset, column)
                    first = file.kind == "jsonl" or offset == 0
                    yield Segment(text, first, index, start_of_text, (index, end))
                    offset = end
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{file.path}: can't be unpacked: {error}") from None


def _beginning(piece: bytes, file: SourceFile, files: Sequence[SourceFile]) -> bytes:
    """The beginning of a file without its byte order mark. DataError for UTF-16, and for rows that would be read as text:
    a source of .json files that are arrays of objects; among other files they are text like any."""
    path = shlex.quote(str(file.path))
    if piece.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(
            f"{file.path}: is UTF-16 text; convert it: `iconv -f UTF-16 -t UTF-8 {path} > NEW-FILE`, and name that"
        )
    if re.match(rb"\s*\[\s*\{", piece) and all(
        re.search(r"\.json(\.gz)?$", each.name) for each in files
    ):
        raise DataError(
            f"{file.path}: is an array of JSON objects, not text; make a row of each: "
            f"`{'zcat' if file.path.suffix == '.gz' else 'cat'} {path} | jq -c '.[]' > NEW-FILE.jsonl`, and name that"
        )
    return piece.removeprefix(codecs.BOM_UTF8)


def _json_row(line: bytes, file: SourceFile, offset: int, column: str) -> bytes:
    if line.isspace():
        return b""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{file.path}: the line at byte {offset} is no JSON: {error}") from None
    where = f"{file.path}: the line at byte {offset}"
    if not isinstance(row, dict) or column not in row:
        raise _no_column(where, column, list(row) if isinstance(row, dict) else [])
    return _utf8(row[column], where, column)


def _parquet_rows(file: SourceFile, start: int, column: str) -> Iterator[bytes]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file.path) as table:
        if column not in table.schema_arrow.names:
            raise _no_column(f"{file.path}:", column, table.schema_arrow.names)
        for group in range(table.num_row_groups):
            size = table.metadata.row_group(group).num_rows
            if start >= size:
                start -= size
                continue
            for batch in table.iter_batches(
                256, row_groups=[group], columns=[column], use_threads=False
            ):
                for value in batch.column(0)[start:].to_pylist():
                    yield _utf8(value, f"{file.path}:", column)
                start = max(0, start - len(batch))


def _utf8(value: object, where: str, column: str) -> bytes:
    if not isinstance(value, str | None):
        raise DataError(f"{where} has {type(value).__name__}, not text, in the column '{column}'")
    return (value or "").encode(
        errors="replace"
    )  # JSON can spell half a surrogate pair, UTF-8 can't


def _no_column(where: str, column: str, there: list[str]) -> DataError:
    return DataError(
        f"{where} has no column '{column}'; its columns are {', '.join(there) or 'none'}; "
        "name the one that holds the text: data.text_column=NAME"
    )


# The tokens of two pieces must be those of the whole. GPT-2's pattern always splits where a character that is no
# white space is followed by white space: no alternative spans that place or, but for white space before it, looks
# beyond it. Of the spaces beyond ASCII, only U+00A0 is in a token together with white space behind it. Text
# without white space is cut between a letter and punctuation, where the pattern always splits too.
_BLACK = rb"(?:[!-~]|[\x80-\xbf](?<!\xc2\xa0))"
_CUTS = [
    re.compile(rb"(?s).*" + _BLACK + rb"(?=\n)"),
    re.compile(rb"(?s).*" + _BLACK + rb"(?=[ \t\r\n])"),
    re.compile(
        rb"(?s).*(?:[A-Za-z](?=[,.;:!?)])|[\xe5-\xe9][\x80-\xbf]{2}(?=\xe3\x80[\x81\x82]|\xef\xbc\x8c))"
    ),
]


def last_cut(text: bytes) -> int:
    """The last place where UTF-8 ``text`` can be cut with the same GPT-2 tokens; 0 where there is none."""
    return next((match.end() for cut in _CUTS if (match := cut.match(text))), 0)


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    """The stream in pieces of about PIECE bytes; where one ends depends on where it begins alone."""
    text, size = b"", PIECE
    while True:
        text += stream.read(max(0, size - len(text)))
        if len(text) < size:
            break
        cut = last_cut(text[:size])
        if not cut and size < LONGEST_PIECE:
            size *= 2
            continue
        while (
            not cut or text[cut] & 0xC0 == 0x80
        ):  # no place for a cut: anywhere between characters
            cut = (cut or size) - 1
        yield text[:cut]
        text, size = text[cut:], PIECE
    if text:
        yield text
