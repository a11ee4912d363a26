"""Safe names, the journal of verified files, and runs that are active on Modal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from job.run_record import RunStatus
from runner.target import RunInfo
from runner.targets.modal.target import ModalTarget
from runner.targets.modal.volume import ModalVolumeFiles, RemoteEntry
from runner.transfer.mapping import (
    MAX_STALE_LINES,
    Journal,
    UnsafePath,
    is_temporary,
    local_path,
    temporary_path,
    unsafe_reason,
)
from tests.runner.transfer.conftest import MIB, Cloud, random_bytes, tree, write_run

Invoke = Callable[[str], Result]


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "a//b",
        "./a",
        "a/.",
        "..",
        "",
        "C:/x",
        "c:x",
        "a\\b",
        "..\\x",
        "a\nb",
        "a\0b",
        "a\udcff",
    ],
)
def test_unsafe_name_is_refused(name: str, tmp_path: Path) -> None:
    assert unsafe_reason(name) is not None
    with pytest.raises(UnsafePath):
        local_path(tmp_path / "root", name)


@pytest.mark.parametrize(
    "name", ["a/b.txt", "...", "a..b", "~", "-rf", "übung/日本", "12:30", "con", " x"]
)
def test_unusual_safe_name_is_accepted(name: str, tmp_path: Path) -> None:
    assert unsafe_reason(name) is None
    assert local_path(tmp_path, name).is_relative_to(tmp_path)


def test_symbolic_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafePath, match="symbolic link"):
        local_path(tmp_path / "root", "link/file")


def test_symbolic_link_instead_of_a_file_is_replaced(
    invoke: Invoke, cloud: Cloud, local: Path, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("mine")
    (local / "data/file.txt").symlink_to(tmp_path / "precious")
    cloud.put("data", "file.txt", b"theirs")
    assert invoke("runner pull data").exit_code == 0
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (local / "data/file.txt").is_symlink()


def test_temporary_names_are_not_transferred(tmp_path: Path) -> None:
    assert all(
        is_temporary(n)
        for n in (".x.part", "a/.x.part.blocks", ".run.json.77.tmp", "r/.partial_step_1/m")
    )
    assert not any(is_temporary(n) for n in ("x.part", "a/.hidden", "partial_step_1/m"))
    assert len(temporary_path(tmp_path / ("ü" * 127), ".part.blocks").name.encode()) < 256


def test_unsafe_names_in_a_listing_are_refused_and_the_others_pulled(
    invoke: Invoke, cloud: Cloud, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.put("data", "good.txt", b"good")
    cloud.put("data", "back\\slash.txt", b"bad")
    real = ModalVolumeFiles.listing

    def listing(self: ModalVolumeFiles, *args: Any, **kwargs: Any) -> list[RemoteEntry]:
        return [*real(self, *args, **kwargs), RemoteEntry("a/../../../evil", 4, 1, "file")]

    monkeypatch.setattr(ModalVolumeFiles, "listing", listing)
    result = invoke("runner pull data")
    assert result.exit_code == 1
    assert tree(local / "data") == {"good.txt": b"good"}
    assert "missing: a/../../../evil: the name leads out of the folder" in result.stderr
    assert "contains a backslash" in result.stderr
    assert not list(local.parent.rglob("*evil*"))


def test_link_in_the_volume_is_missing_from_the_pull(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    cloud.put("data", "good.txt", b"good")
    cloud.put("data", "set/meta.json", b"{}")
    (cloud.folder("data") / "set/link").symlink_to("/etc/passwd")
    result = invoke("runner pull data")
    assert result.exit_code == 1
    assert "missing: set/link: a symlink, not a file" in result.stderr
    assert "missing: set/meta.json: its folder is incomplete" in result.stderr
    assert tree(local / "data") == {"good.txt": b"good"}


ENTRY = {
    "path": "a.txt",
    "local": "/a.txt",
    "size": 1,
    "modified": 1,
    "local_mtime_ns": 1,
    "at": 1.0,
}

DAMAGED = [
    b"{}",
    b"[]",
    b"null",
    b"5",
    b'{"path": "a.txt"',
    b"\xff\xfe\x00",
    b"\x00" * 100,
    b"[" * 100_000,
    *(json.dumps({**ENTRY, name: value}).encode() for name in ENTRY for value in (None, [1], {})),
    json.dumps({**ENTRY, "size": "1"}).encode(),
    json.dumps({**ENTRY, "path": 1}).encode(),
    json.dumps({**ENTRY, "future": 1}).encode(),
]


@pytest.mark.parametrize("line", DAMAGED)
def test_damaged_line_is_ignored_and_the_others_are_kept(line: bytes, tmp_path: Path) -> None:
    local = tmp_path / "a.txt"
    local.write_text("x")
    remote = RemoteEntry("a.txt", 1, 5, "file")
    Journal(tmp_path / "journal").record(remote, local, listed=100.0)
    intact = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(line + b"\n" + intact + line)
    assert Journal(tmp_path / "journal").is_unchanged(remote, local)


def test_pull_ignores_a_damaged_journal(invoke: Invoke, cloud: Cloud, local: Path) -> None:
    cloud.put("data", "a.txt", b"content")
    assert invoke("runner pull data").exit_code == 0
    (journal,) = (local / "cache/.sync").glob("*.jsonl")
    journal.write_bytes(b"\n".join(DAMAGED))
    assert invoke("runner pull data").exit_code == 0
    journal.unlink()
    journal.mkdir()  # cannot be read or written
    assert invoke("runner pull data").exit_code == 0
    assert tree(local / "data") == {"a.txt": b"content"}


@pytest.mark.parametrize(
    "line", ["9" * 40 + " " + "0" * 64, "-1 " + "0" * 64, "77 " + "0" * 64, "x", "\udcff", "0 1"]
)
def test_pull_ignores_damaged_hashes_of_a_partial_file(
    invoke: Invoke, cloud: Cloud, local: Path, line: str
) -> None:
    content = random_bytes(17 * MIB)
    remote = cloud.put("data", "big.bin", content)
    header = {"path": "big.bin", "size": len(content), "kind": "file"}
    header["modified"] = int(remote.stat().st_mtime)
    text = json.dumps({key: header[key] for key in ("path", "size", "modified", "kind")})
    hashes = local / "data/.big.bin.part.blocks"
    hashes.write_text(f"{text}\n{line}\n", encoding="utf-8", errors="surrogateescape")
    (local / "data/.big.bin.part").write_bytes(b"")
    assert invoke("runner pull data").exit_code == 0
    assert tree(local / "data") == {"big.bin": content}


def test_journal_is_rewritten_without_old_lines(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    file.write_text((json.dumps(ENTRY) + "\n") * (MAX_STALE_LINES + 10))
    Journal(file)
    assert file.read_text() == json.dumps(ENTRY) + "\n"


@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize("is_fresh", [True, False])
def test_the_call_on_modal_decides_whether_a_run_is_active_not_its_heartbeat(
    alive: bool,
    is_fresh: bool,
    invoke: Invoke,
    cloud: Cloud,
    local: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_run(cloud.folder("checkpoints") / "warm", [10], status="running")
    if not is_fresh:
        cloud.age("checkpoints")
    write_run(local / "checkpoints/warm", [20])
    state = RunInfo("warm", "train", "cloud", RunStatus.RUNNING, alive=alive)
    monkeypatch.setattr(ModalTarget, "state", lambda self, run: state)
    lines = ("rm checkpoints warm -r", "rm checkpoints warm/log.txt", "push checkpoints warm")
    for line in lines:
        result = invoke(f"runner {line}")
        assert ("run 'warm' is active on Modal" in result.stderr) is alive
        assert (result.exit_code, line) == (2 if alive or line.startswith("rm") else 0, line)
