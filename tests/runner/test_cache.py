"""runner cache lists and deletes caches by kind, on this machine and on Modal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from job.run_record import RunStatus
from runner.console import CliContext
from runner.target import RunInfo
from tests.runner.targets.modal.conftest import CloudFixture, cloud  # noqa: F401


@pytest.fixture
def cache(checkout: Path) -> Path:
    folder = checkout / "volumes" / "cache"
    for name, size in (("triton/a/k.cubin", 3000), ("triton/b", 10), ("tiktoken/gpt2", 500)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
    (folder / "modal_image.json").write_text("{}")
    (folder / ".sync").mkdir()
    (folder / ".sync/vo-1.jsonl").write_text("")
    return folder


def test_caches_are_listed_by_kind(type_, cache: Path) -> None:
    result = type_("runner cache")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["tiktoken", "triton"]
    assert json.loads(type_("runner cache ls triton --json").stdout) == [
        {"kind": "triton", "files": 2, "bytes": 3010}
    ]


def test_clear_asks_first(type_, cache: Path) -> None:
    result = type_("runner cache clear")
    assert result.exit_code == 2
    assert "runner cache clear -y" in result.stderr
    assert (cache / "triton" / "b").exists()


def test_clear_names_active_runs(
    type_, cache: Path, cli: CliContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunInfo("warm", "train", "host", RunStatus.RUNNING, alive=True)
    monkeypatch.setattr(cli.targets["host"], "runs", lambda: [run])
    result = type_("runner cache clear triton")
    assert result.exit_code == 2
    assert "run 'warm' is active" in result.stderr


def test_clear_deletes_one_kind_and_keeps_the_rest(type_, cache: Path) -> None:
    result = type_("runner cache clear triton triton -y")
    assert (result.exit_code, "deleted triton: " in result.stderr) == (0, True)
    assert sorted(path.name for path in cache.iterdir()) == [
        ".sync",
        "modal_image.json",
        "tiktoken",
    ]
    result = type_("runner cache clear tiktokn -y")
    assert (result.exit_code, "did you mean 'tiktoken'?" in result.stderr) == (102, True)
    assert type_("runner cache clear -y").exit_code == 0
    assert sorted(path.name for path in cache.iterdir()) == [".sync", "modal_image.json"]
    assert (cache / ".sync/vo-1.jsonl").exists()
    assert "no cache to delete" in type_("runner cache clear").stderr


def test_caches_on_modal(cloud: CloudFixture) -> None:  # noqa: F811
    out, _ = cloud.run("cache", "ls", "--target", "cloud", "--json")
    assert json.loads(out) == []
    (cloud.checkout / "note.txt").write_text("a note")
    cloud.run("push", "cache", "note.txt", "-y")  # creates the volume
    folder = cloud.volume("cache")
    (folder / "inductor" / "ab").mkdir(parents=True)
    (folder / "inductor" / "ab" / "graph.py").write_text("x" * 70)
    out, _ = cloud.run("cache", "ls", "--target", "cloud", "--json")
    assert json.loads(out) == [{"kind": "inductor", "files": 1, "bytes": 70}]
    cloud.run("cache", "clear", "inductor", "--target", "cloud", "-y")
    assert not (folder / "inductor" / "ab" / "graph.py").exists()
