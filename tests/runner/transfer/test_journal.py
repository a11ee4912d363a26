"""The journal of verified files, and a damaged one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from runner.transfer.mapping import MAX_STALE_LINES, Journal, RemoteEntry
from tests.runner.transfer.conftest import MIB, Cloud, random_bytes, tree

Invoke = Callable[[str], Result]

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
