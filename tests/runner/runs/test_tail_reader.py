"""Tests of following a file that grows or is rewritten."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from runner.runs import logs
from runner.runs.logs import TailReader
from runner.target import LocalVolume


class CountingFiles(LocalVolume):
    """Files that count the bytes read from them."""

    count: ClassVar[list[int]] = [0]

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        text = super().read(path, start, length)
        self.count[0] += len(text)
        return text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def file(tmp_path: Path) -> TailReader:
    return TailReader(LocalVolume(tmp_path), "metrics.jsonl")


def test_a_missing_file_has_no_lines(file: TailReader, path: Path) -> None:
    assert file.poll().lines == ()
    path.write_text("one\n")
    assert file.poll().lines == (b"one",)


def test_a_partial_line_waits_for_its_end(file: TailReader, path: Path) -> None:
    path.write_text("one\ntw")
    assert file.poll().lines == (b"one",)
    assert file.poll().lines == ()
    with path.open("a") as out:
        out.write("o\nthree\n")
    assert file.poll().lines == (b"two", b"three")


def test_a_poll_reads_only_new_bytes(tmp_path: Path, path: Path) -> None:
    files = CountingFiles(tmp_path)
    file = TailReader(files, "metrics.jsonl")
    path.write_text("a line\n" * 100_000)
    file.poll()
    files.count[0] = 0
    with path.open("a") as out:
        out.write("another\n")
    assert file.poll().lines == (b"another",)
    assert files.count[0] < 2 * logs.OVERLAP_BYTES


@pytest.mark.parametrize("more", [0, 1, 5000])
def test_a_rewritten_file_is_read_from_its_start(file: TailReader, path: Path, more: int) -> None:
    path.write_text("".join(f"step {i} first attempt\n" for i in range(1000)))
    assert len(file.poll().lines) == 1000
    kept = [f"step {i} first attempt\n" for i in range(900)]
    path.write_text("".join([*kept, *(f"step {900 + i} second attempt\n" for i in range(more))]))
    piece = file.poll()
    assert (piece.restarted, len(piece.lines)) == (True, 900 + more)
    assert not file.poll().restarted


def test_a_long_file_takes_several_polls(
    file: TailReader, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_POLL_BYTES", 1000)
    path.write_text("".join(f"{i}\n" for i in range(1000)))
    lines: list[bytes] = []
    while not (piece := file.poll()).is_complete:
        assert not piece.restarted
        lines += piece.lines
    assert [*lines, *piece.lines] == [str(i).encode() for i in range(1000)]


def test_only_the_end_of_a_log_is_read(tmp_path: Path, path: Path) -> None:
    path.write_text("".join(f"{i:04d}\n" for i in range(1000)))
    file = TailReader(LocalVolume(tmp_path), "metrics.jsonl", max_bytes=50)
    assert file.poll().lines[-1] == b"0999"
    assert len(file.poll().lines) == 0
    with path.open("a") as out:
        out.write("1000\n")
    assert file.poll().lines == (b"1000",)
