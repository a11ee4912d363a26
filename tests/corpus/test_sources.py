"""Sources: files, folders, globs, URLs and the standard library, with clear errors."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus import DataError, Monitor, download, segments
from corpus.formats import SourceFile
from corpus.segments import Cursor, read
from corpus.sources import find_files
from tests.file_server import FileServer

TEXTS = ["one\ntwo\n", "", "drei – vier 🙂", 'five "six"']


def documents(source: object, tmp_path: Path, column: str = "text") -> list[str]:
    files = find_files(str(source), tmp_path / "raw")
    found: list[bytes] = []
    for segment in read(files, column):
        if segment.first:
            found.append(b"")
        found[-1] += segment.text
    return [text.decode() for text in found]


def names(source: object, tmp_path: Path) -> list[str]:
    return [file.name for file in find_files(str(source), tmp_path / "raw")]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.txt", "a/z.txt", "a/y.md", ".hidden/x.txt", ".x"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}\n")
    return tmp_path / "tree"


def test_a_file_is_one_document_however_many_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "PIECE_BYTES", 100)
    (tmp_path / "f.txt").write_text("some words\n" * 1000)
    assert documents(tmp_path / "f.txt", tmp_path) == ["some words\n" * 1000]
    assert len(list(read(find_files(str(tmp_path / "f.txt"), tmp_path), "text"))) > 100


def test_a_folder_is_read_sorted_without_hidden_files(tree: Path, tmp_path: Path) -> None:
    assert names(tree, tmp_path) == ["a/y.md", "a/z.txt", "b.txt"]
    assert documents(tree, tmp_path) == ["text of a/y.md\n", "text of a/z.txt\n", "text of b.txt\n"]


def test_an_image_among_texts_is_skipped_with_a_message(tree: Path, tmp_path: Path) -> None:
    (tree / "a" / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF" * 10)
    messages: list[object] = []
    files = find_files(str(tree), tmp_path / "raw", monitor=Monitor(messages.append))
    assert [file.name for file in files] == ["a/y.md", "a/z.txt", "b.txt"]
    assert messages == [
        "skipped 3 of the source's files and folders: 1 an image (a/photo.jpg); "
        "2 hidden (.hidden, .x)"
    ]


def test_an_empty_text_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "f.txt").touch()
    with pytest.raises(DataError, match=r"f\.txt is empty"):
        find_files(str(tmp_path / "f.txt"), tmp_path / "raw")


def test_glob_reads_the_matching_files(tree: Path, tmp_path: Path) -> None:
    assert names(f"{tree}/**/*.txt", tmp_path) == ["a/z.txt", "b.txt"]
    assert names(f"{tree}/a/[yz].*", tmp_path) == ["y.md", "z.txt"]


@pytest.mark.parametrize("source", ["no/such.txt", "no/*.txt"])
def test_a_missing_source_is_named(source: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(source)):
        find_files(source, tmp_path)


def test_rows_of_jsonl_and_parquet_are_documents(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS))
    (tmp_path / "a.jsonl").write_text(lines.replace("\n", "\n\n"))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(
        pa.table({"id": range(4), "text": TEXTS}), tmp_path / "c.parquet", row_group_size=3
    )
    assert [t for t in documents(tmp_path / "a.jsonl", tmp_path) if t] == [t for t in TEXTS if t]
    assert documents(tmp_path / "b.jsonl.gz", tmp_path) == TEXTS
    assert documents(tmp_path / "c.parquet", tmp_path) == TEXTS
    assert len(documents(f"{tmp_path}/[abc]*", tmp_path)) >= 12


def test_a_missing_column_lists_the_present_ones(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "x", "id": 1}\n')
    pq.write_table(pa.table({"content": ["x"], "id": [1]}), tmp_path / "b.parquet")
    for name in ("a.jsonl", "b.parquet"):
        with pytest.raises(
            DataError, match=r"no column 'text'; its columns are content, id;.*data\.text_column="
        ):
            documents(tmp_path / name, tmp_path)
        assert documents(tmp_path / name, tmp_path, "content") == ["x"]
        with pytest.raises(DataError, match="int, not text, in the column 'id'"):
            documents(tmp_path / name, tmp_path, "id")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "byte 14 is not JSON"),
        ("a.jsonl", b"[1]\n", "no column"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"body": "y"}\n',
            "line at byte 14 has no column 'text'; its columns are body;",
        ),
        (
            "a.txt",
            "\ufeffü".encode("utf-16-le"),
            "UTF-16 text; convert it: `iconv -f UTF-16 -t UTF-8 .*a.txt >",
        ),
        ("a.txt.gz", gzip.compress("\ufeffü".encode("utf-16-be"), mtime=0), "UTF-16 text"),
        (
            "a.json",
            b' [\n {"text": "x"}]',
            r"array of JSON objects.*`cat .*a\.json \| jq -c '\.\[\]' >",
        ),
        ("a.parquet", b"PAR1 is not enough", "can't be read as Parquet"),
        ("a.parquet", b"<html>Not found", "can't be read as Parquet: it does not begin with PAR1"),
        # mtime=0: else the test's name would differ between the processes of pytest-xdist.
        ("a.txt.gz", gzip.compress(b"x" * 1000, mtime=0)[:-9], "can't be unpacked"),
        ("a.txt.gz", b"plain", "can't be unpacked"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}.*{words}"):
        documents(tmp_path / name, tmp_path)


def test_an_array_among_texts_is_a_text(tree: Path, tmp_path: Path) -> None:
    (tree / "c.json").write_text('[{"a": 1}]')
    assert documents(tree, tmp_path)[-1] == '[{"a": 1}]'


def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud83dz"}\n')
    assert documents(tmp_path / "a.jsonl", tmp_path) == ["a?z"]


def test_reading_resumes_from_any_cursor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "PIECE_BYTES", 64)
    monkeypatch.setattr(segments, "MAX_PIECE_BYTES", 128)
    folder = tmp_path / "in"
    folder.mkdir()
    rows = [f"row {i}\n" * 3 for i in range(700)]
    (folder / "a.txt").write_text("\ufeff" + "".join(rows[:50]) + "ü" * 1000 + " x" * 500)
    (folder / "b.txt.gz").write_bytes(gzip.compress("".join(rows[:50]).encode()))
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows[:50]))
    pq.write_table(pa.table({"text": rows}), folder / "d.parquet", row_group_size=300)
    files = find_files(str(folder), tmp_path)
    whole = list(read(files, "text"))
    assert (whole[0].first, whole[0].offset, whole[0].text[:5]) == (
        True,
        3,
        b"row 0",
    )  # without the mark
    for at in [*range(0, len(whole) - 701, 3), *range(len(whole) - 701, len(whole), 97)]:
        cursor: Cursor = whole[at].after
        assert next(read(files, "text", cursor), None) == (
            whole[at + 1] if at + 1 < len(whole) else None
        )


def test_text_without_line_ends_is_cut_between_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "PIECE_BYTES", 64)
    monkeypatch.setattr(segments, "MAX_PIECE_BYTES", 256)
    (tmp_path / "f.txt").write_text("x" + "äöü" * 1000)
    found = list(read(find_files(str(tmp_path / "f.txt"), tmp_path), "text"))
    assert "".join(segment.text.decode() for segment in found) == "x" + "äöü" * 1000
    assert max(len(segment.text) for segment in found) <= 256


def test_a_url_is_downloaded_once(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "BLOCK_BYTES", 10)
    server.files["/a/input.txt"] = b"some text\n" * 100
    server.troubles["/a/input.txt"] = [300]
    patient = Monitor(pause=lambda seconds: None)
    for _ in range(2):
        files = find_files(f"{server.url}/a/input.txt", tmp_path / "raw", monitor=patient)
        assert [segment.text for segment in read(files, "text")] == [b"some text\n" * 100]
    assert len([path for path, *_ in server.requests if path == "/a/input.txt"]) == 2
    assert [path.name.partition("-")[2] for path in (tmp_path / "raw").iterdir()] == ["input.txt"]


def test_urls_with_the_same_file_name_are_kept_apart(server: FileServer, tmp_path: Path) -> None:
    server.files["/a/input.txt"], server.files["/b/input.txt"] = b"of a", b"of b"
    for which in ("a", "b", "a"):
        assert documents(f"{server.url}/{which}/input.txt", tmp_path) == [f"of {which}"]
    server.files["/rows.jsonl.gz?version=2"] = gzip.compress(b'{"text": "a row"}\n')
    assert documents(f"{server.url}/rows.jsonl.gz?version=2", tmp_path) == ["a row"]


def test_without_network_the_error_suggests_a_local_copy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9/f\.txt: can't be reached.*--source FILE"):
        find_files("http://127.0.0.1:9/f.txt", tmp_path)


def test_a_page_of_html_in_place_of_a_text_is_read_with_a_warning(
    server: FileServer, tmp_path: Path
) -> None:
    server.files["/t.txt"] = b"<!DOCTYPE html><p>Not found" * 10
    messages: list[str] = []
    monitor = Monitor(lambda event: messages.append(str(event)))
    find_files(f"{server.url}/t.txt", tmp_path / "raw", monitor=monitor)
    assert messages[-1] == f"warning: {server.url}/t.txt gave a page of HTML, which is read as text"


def test_in_the_cloud_the_error_suggests_a_push(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN_LAUNCH", '{"target": "cloud"}')
    with pytest.raises(DataError, match="`runner push data FILE`, then source=/vol/data/FILE"):
        find_files("http://127.0.0.1:9/f.txt", tmp_path)


def test_the_standard_library_is_stable_and_only_code(tmp_path: Path) -> None:
    found = names("stdlib", tmp_path)
    assert found == sorted(found) == names("stdlib", tmp_path)
    assert {"argparse.py", "json/decoder.py", "asyncio/base_events.py"} <= set(found)
    assert not [
        name
        for name in found
        if re.search(r"(^|/)(tests?|site-packages|idlelib|__pycache__)/", name)
    ]
    assert not [name for name in found if name.startswith("_sysconfigdata")]
    assert sum(file.size for file in find_files("stdlib", tmp_path)) > 5_000_000


def messages_of(source: Path, tmp_path: Path) -> tuple[list[str], str]:
    messages: list[str] = []
    monitor = Monitor(lambda event: messages.append(str(event)))
    files = find_files(str(source), tmp_path / "raw", monitor=monitor)
    return [file.name for file in files], " ".join(messages)


def test_links_to_folders_are_followed_once_and_cycles_end(tree: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep" / "c.txt").write_text("text of c\n")
    (elsewhere / "deep" / "back").symlink_to(tree)
    (tree / "0linked").symlink_to(elsewhere)
    (tree / "a" / "self").symlink_to(tree)
    found, messages = messages_of(tree, tmp_path)
    assert found == ["0linked/deep/c.txt", "a/y.md", "a/z.txt", "b.txt"]
    assert "2 links to a folder that is read already (0linked/deep/back, a/self)" in messages


def test_link_next_to_its_folder_does_not_rename_the_files(tree: Path, tmp_path: Path) -> None:
    for name in ("0", "z"):
        (tree / name).symlink_to(tree / "a")
    assert names(tree, tmp_path) == ["a/y.md", "a/z.txt", "b.txt"]


def test_a_glob_reads_a_file_once_through_a_cycle_of_links(tree: Path, tmp_path: Path) -> None:
    (tree / "a" / "self").symlink_to(tree)
    assert names(f"{tree}/**/*.txt", tmp_path) == ["a/z.txt", "b.txt"]


def test_folders_that_a_glob_matches_are_reported(tree: Path, tmp_path: Path) -> None:
    _, messages = messages_of(tree / "*", tmp_path)
    assert "1 folders (end the glob with /** to read them) (a)" in messages


def test_skipped_files_are_reported_and_counted(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "broken").symlink_to(tree / "nothing")
    os.mkfifo(tree / "pipe")
    (tree / "empty.txt").touch()
    (tree / "empty.txt.gz").write_bytes(gzip.compress(b""))
    (tree / "data.zip").write_bytes(b"PK\x03\x04")
    (tree / "locked.txt").write_text("text\n")
    opened = Path.open

    def locked(path: Path, *args: object, **kwargs: object) -> object:
        if path.name == "locked.txt":
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", locked)
    found, messages = messages_of(tree, tmp_path)
    assert found == ["a/y.md", "a/z.txt", "b.txt"]
    assert messages.startswith("skipped 8 of the source's files and folders: ")
    for part in (
        "1 a FIFO (pipe)",
        "1 a zip archive (data.zip)",
        "1 broken links (broken)",
        "1 cannot be read (locked.txt)",
        "2 empty (empty.txt, empty.txt.gz)",
        "2 hidden (.hidden, .x)",
    ):
        assert part in messages


@pytest.mark.parametrize("kind", ["broken link", "FIFO"])
def test_a_source_that_is_not_a_file_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=f"x: a {kind}"):
        find_files(str(path), tmp_path / "raw")


def test_a_name_that_is_not_utf8_is_read_and_shown(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"caf\xe9.txt", b"new\nline.txt"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text("text\n" * 50)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xe9.zip")).write_bytes(b"PK\x03\x04")
    found, messages = messages_of(folder, tmp_path)
    assert len(found) == 2
    assert "\\udce9.zip" in messages


def test_an_empty_or_blank_file_is_never_the_whole_validation_set() -> None:
    ranks = {
        name: segments._hash_fraction(name.encode()) for name in (f"{i}.txt" for i in range(200))
    }
    lowest = min(ranks, key=lambda name: ranks[name])
    files = [
        SourceFile(Path(name), name, 10, "text", is_blank=name == lowest)
        for name in ranks
        if ranks[name] >= 0.01 or name == lowest
    ]
    splitter = segments.ByDocument(files, 1e-9)
    chosen = [file.name for file, val in zip(files, splitter._val, strict=True) if val]
    assert len(chosen) == 1
    assert chosen != [lowest]
