"""The format of a source file is detected from its content; other formats are refused by name."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from corpus import DataError, InvalidSource, Monitor
from corpus.build import prepare
from corpus.formats import refuse_known_formats
from corpus.segments import read
from corpus.sources import find_files
from job.recipe import DataConfig

TEXT = b"".join(b"line %d of the text\n" % i for i in range(500))
ROWS = b"".join(json.dumps({"text": f"row {i}", "id": i}).encode() + b"\n" for i in range(50))


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd,
}


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["a row"]}), buffer)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("t.txt", TEXT)
    return buffer.getvalue()


def tarred(format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        info = tarfile.TarInfo("t.txt")
        info.size = len(TEXT)
        archive.addfile(info, io.BytesIO(TEXT))
    return buffer.getvalue()


def old_tar() -> bytes:
    """Make an archive in the format of 1979, which only its checksum identifies."""
    data = bytearray(tarred(tarfile.USTAR_FORMAT))
    data[257:265], data[148:156] = bytes(8), b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def content(path: Path) -> bytes:
    files = find_files(str(path), path.parent / "raw")
    return b"".join(segment.text for segment in read(files, "text"))


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("name", ["t", "t.txt", "T.JSON", "t.dat"])
def test_compressed_text_and_rows_are_read_under_any_name(
    tmp_path: Path, packer: str, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(PACKERS[packer](TEXT) + PACKERS[packer](TEXT))
    assert content(path) == TEXT + TEXT
    path.write_bytes(PACKERS[packer](ROWS))
    assert content(path) == b"".join(b"row %d" % i for i in range(50))


def test_zstd_that_begins_with_a_skippable_frame_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"\x5e\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip" + zstd(TEXT))
    assert content(path) == TEXT


@pytest.mark.parametrize("packer", PACKERS)
def test_reading_resumes_inside_a_compressed_file(tmp_path: Path, packer: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(PACKERS[packer](ROWS))
    files = find_files(str(path), tmp_path)
    segments = list(read(files, "text"))
    assert list(read(files, "text", segments[20].after)) == segments[21:]


@pytest.mark.parametrize("packer", PACKERS)
def test_a_truncated_compressed_file_is_named(tmp_path: Path, packer: str) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(PACKERS[packer](os.urandom(200_000).hex().encode())[:-9])
    with pytest.raises(DataError, match=r"t\.txt: can't be unpacked"):
        content(path)


@pytest.mark.parametrize("name", ["t.json", "t.JSONL", "t", "t.txt", "t.parquet.json"])
def test_json_lines_are_read_under_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf\n" + ROWS if name == "t" else ROWS)
    assert content(tmp_path / name) == b"".join(b"row %d" % i for i in range(50))


def test_parquet_is_read_under_any_name(tmp_path: Path) -> None:
    for name in ("t", "t.txt", "T.PARQUET"):
        (tmp_path / name).write_bytes(parquet())
        assert content(tmp_path / name) == b"a row"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (zipped(), "a zip archive"),
        (tarred(), "a tar archive"),
        (tarred(tarfile.USTAR_FORMAT), "a tar archive"),
        (gzip.compress(tarred(), mtime=0), "a tar archive"),
        (old_tar(), "a tar archive"),
        (b"damaged" + tarred()[7:], "a tar archive"),
        (lzma.compress(zipped()), "a zip archive"),
        (gzip.compress(parquet(), mtime=0), "Parquet inside gzip"),
        (bz2.compress(gzip.compress(TEXT, mtime=0)), "gzip inside bzip2"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive"),
        (b"Rar!\x1a\x07\x01\0", "a RAR archive"),
        (b"\x04\x22\x4d\x18dddd", "compressed with lz4"),
        (b"ARROW1\0\0", "an Arrow file"),
        (b"ORC\0\0\0", "an ORC file"),
        (b"Obj\x01\4\x14avro.codec\0", "an Avro file"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"\x93NUMPY\1\0", "a NumPy array"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        ("x".encode("utf-32"), "UTF-32 text"),
        (TEXT.decode().encode("utf-16-le"), "UTF-16LE text"),
        (TEXT.decode().encode("utf-16-be"), "UTF-16BE text"),
        (zlib.compress(TEXT), "compressed with zlib"),
        (zlib.compress(TEXT, 9), "compressed with zlib"),
        (b"GGUF\3\0\0\0", "a GGUF network"),
        (safetensors.numpy.save({"w": np.zeros(2, np.float32)}), "a safetensors file"),
        *((pickle.dumps(["text"], protocol), "a pickle") for protocol in range(2, 6)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("name", ["t.txt", "t.jsonl", "t.parquet", "t.gz"])
def test_other_formats_are_refused_by_name_under_any_name(
    tmp_path: Path, data: bytes, what: str, name: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name}: {what}") as caught:
        content(tmp_path / name)
    assert "tokenizer" not in str(caught.value)


@pytest.mark.parametrize(
    "text", [b"ORCHESTRA plays\n", b"PARENTS and children\n", b"BZh9 is a name\n"]
)
def test_text_that_begins_like_a_binary_format_is_text(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "t.txt").write_bytes(text)
    assert content(tmp_path / "t.txt") == text


def test_json_without_the_text_column_is_text_among_texts_with_a_message(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("words\n")
    (folder / "log.json").write_text('{"a": 1}\n{"a": 2}\n')
    messages: list[object] = []
    files = find_files(str(folder), tmp_path, monitor=Monitor(messages.append))
    assert [file.kind for file in files] == ["text", "text"]
    assert messages == ["JSON without the text column is read as plain text: log.json"]
    (folder / "a.txt").unlink()
    with pytest.raises(DataError, match=r"log\.json.*no column 'text'"):
        content(folder)


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    rows = [f"row {i} {i * 7919}" for i in range(4000)]
    for codec in ("snappy", "zstd", "none"):
        pq.write_table(pa.table({"text": rows}), path, compression=codec, use_dictionary=False)
        data = bytearray(path.read_bytes())
        for position in range(4, len(data) // 2):
            data[position] ^= 0x5A
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"t\.parquet: damaged Parquet"):
            content(path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [(b"row 500", b"row 5x0", "CRC"), (b"PAR1\x15\0", b"PAR1\x15\1", "has 0 of 1000 rows")],
)
def test_parquet_whose_damage_still_decodes_is_refused(
    tmp_path: Path, old: bytes, new: bytes, words: str
) -> None:
    path, table = tmp_path / "t.parquet", pa.table({"text": [f"row {i}" for i in range(1000)]})
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    pq.write_table(table, path, **options)
    whole = path.read_bytes()
    assert old in whole
    path.write_bytes(whole.replace(old, new, 1))
    with pytest.raises(DataError, match=rf"t\.parquet: damaged.*{words}"):
        content(path)


def test_row_that_is_nested_too_deeply_is_located(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "x"}\n' + "[" * 100_000 + "\n")
    with pytest.raises(DataError, match="the line at byte 14 is not JSON"):
        content(tmp_path / "t.jsonl")


@pytest.mark.parametrize(
    "source",
    [
        "http://[",
        "http://",
        "http://a:b/",
        "HTTP://:80/x",
        "http://a:0/x",
        "s3://bucket/x",
        "file:///x",
        "x" * 5000,
        "~nobody-x/y",
    ],
)
def test_unreadable_source_is_a_usage_error(tmp_path: Path, source: str) -> None:
    with pytest.raises(InvalidSource) as caught:
        find_files(source, tmp_path / "raw")
    assert caught.value.status == 2


def test_error_of_a_compressed_file_does_not_mention_the_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"\0\1\2" + os.urandom(5000))
    config = DataConfig(
        dataset="d", source=str(tmp_path / "t.txt"), tokenizer="chars", split="tail"
    )
    with pytest.raises(DataError, match="not UTF-8") as caught:
        prepare(config, tmp_path / "d")
    assert "data.tokenizer" not in str(caught.value)


def test_a_pointer_in_place_of_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(DataError, match=r"a Git LFS pointer.*git lfs pull"):
        refuse_known_formats(path)
    path.write_bytes(safetensors.numpy.save({"w": np.zeros(2, np.float32)}))
    refuse_known_formats(path)
