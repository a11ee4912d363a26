"""Reading files of a run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from job.files import describe_os_error, read_file, write_atomically
from job.run_record import read_record
from job.step_folders import find_damage
from runner.runs.attempts import AttemptLog, read_log
from runner.runs.store import read_exit, read_launch, read_tags
from runner.target import LocalVolume


def test_a_part_of_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"0123456789")
    assert (read_file(path), read_file(path, 7), read_file(path, 2, 3)) == (
        b"0123456789",
        b"789",
        b"234",
    )


def test_the_null_device_is_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / ".env").symlink_to(os.devnull)
    assert read_file(tmp_path / ".env") == b""
    with pytest.raises(OSError, match="a device"):
        read_file(Path("/dev/zero"))


def test_a_fifo_is_unreadable_and_nothing_waits_for_it(tmp_path: Path) -> None:
    names = ("run.json", "launch.json", "tags.json", "exit_status", "cloud.json", "manifest.json")
    for name in names:
        os.mkfifo(tmp_path / name)
    readers = (read_record, read_launch, read_tags, read_exit)
    assert [read(tmp_path) for read in readers] == [None] * 4
    assert read_log(tmp_path) == AttemptLog()
    assert "manifest.json is missing or unreadable" in find_damage(tmp_path)
    with pytest.raises(OSError, match="a FIFO, not a regular file"):
        LocalVolume(tmp_path).read("run.json")


def test_a_failed_write_names_the_file_or_its_folder(tmp_path: Path, monkeypatch) -> None:
    """The temporary file is gone when the message is read."""
    folder = tmp_path / "my folder"
    folder.mkdir()
    for number, expected in (
        (errno.EACCES, f"{folder}: denied; check its rights: `ls -ld '{folder}'`"),
        (errno.EROFS, f"{folder}/run.json: denied"),
    ):

        def fail(path: Path, mode: str, number: int = number) -> None:
            raise OSError(number, "Denied", str(path))

        monkeypatch.setattr(Path, "open", fail)
        with pytest.raises(OSError, match="Denied") as raised:
            write_atomically(folder / "run.json", "{}")
        assert describe_os_error(raised.value) == expected
