"""`runner rm RUN` and `runner prune` delete only the named files, and none of an active run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import Result

from job.run_record import RunStatus
from job.step_folders import FILES, MANIFEST, sha256, steps
from runner.console import CliContext
from runner.target import RunInfo
from runner.targets.host import HostTarget
from tests.runner.fake_target import FakeTarget

Type = Callable[[str], Result]
OLD = RunInfo("warm", "train", "host", RunStatus.FINISHED, started=50.0, ended=60.0)


def with_checkpoints(folder: Path, best: int) -> Path:
    """Add the checkpoints of steps 10 to 50; ``best`` has the lowest validation loss."""
    for step in range(10, 60, 10):
        path = folder / f"step_{step:08d}"
        path.mkdir(exist_ok=True)
        for name in FILES:
            (path / name).write_bytes(b"x" * 1000)
        digest = {"bytes": 1000, "sha256": sha256(path / FILES[0])}
        (path / MANIFEST).write_text(json.dumps(dict.fromkeys(FILES, digest)))
    lines = [
        {"kind": "val", "step": step, "loss": 1.0 if step == best else 2.0}
        for step in range(10, 60, 10)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_rm_asks_with_the_size_and_deletes_the_run(
    type_: Type, cli: CliContext, checkout: Path, make_run: Callable[..., Path]
) -> None:
    folder = with_checkpoints(make_run("warm", step=50), best=20)
    cli.targets["host"] = HostTarget(cli, checkout)
    result = type_("runner rm warm")
    assert result.exit_code == 2
    assert "run 'warm' (host): 24 files, 17 kB" in result.stderr
    assert folder.exists()
    assert type_("runner rm 'wa*' -y").exit_code == 0
    assert list(folder.parent.iterdir()) == []
    assert type_("runner rm warm -y").exit_code == 102


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("warm -y", "is active; stop it first: `runner stop warm`"),
        ("warm -r -y", "runs need none"),
        ("checkpoints", "expected one path in the volume checkpoints"),
    ],
)
def test_rm_refuses(
    type_: Type, fake: FakeTarget, make_run: Callable[..., Path], words: str, message: str
) -> None:
    folder = make_run("warm", step=50)
    fake.states = [replace(OLD, status=RunStatus.RUNNING, alive=True)]
    refused = type_(f"runner rm {words}")
    assert refused.exit_code in (1, 2)
    assert message in refused.stderr
    assert folder.exists()


def test_prune_keeps_the_newest_and_the_best_checkpoint(
    type_: Type, fake: FakeTarget, make_run: Callable[..., Path]
) -> None:
    folder = with_checkpoints(make_run("warm", step=50), best=20)
    fake.states = [OLD]
    result = type_("runner prune --older-than 30d")
    assert result.exit_code == 2
    assert "warm: 3 checkpoints, 10" in result.stderr
    assert len(steps(folder)) == 5
    assert type_("runner prune --older-than 30d -y").exit_code == 0
    assert steps(folder) == [20, 50]
    assert "no old checkpoints" in type_("runner prune --older-than 30d -y").stderr


@pytest.mark.parametrize(
    ("is_remote", "name", "content"),
    [
        (False, "optimizer.safetensors", b"y" * 1000),
        (True, "optimizer.safetensors", b"x" * 999),
        (True, "manifest.json", b"{}"),
    ],
)
@pytest.mark.parametrize("damaged", [[50], [50, 40], [10, 20, 30, 40, 50]])
def test_prune_keeps_the_newest_intact_checkpoint(
    type_: Type,
    fake: FakeTarget,
    make_run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    damaged: list[int],
    is_remote: bool,
    name: str,
    content: bytes,
) -> None:
    folder = with_checkpoints(make_run("warm", step=50), best=50)
    fake.states = [OLD]
    if is_remote:  # another volume, whose files can't be hashed
        files = fake.files("checkpoints")
        monkeypatch.setattr(
            fake,
            "files",
            lambda volume: SimpleNamespace(size=files.size, read=files.read, entries=files.entries),
        )
    for step in damaged:
        (folder / f"step_{step:08d}" / name).write_bytes(content)
    result = type_("runner prune --older-than 30d -y")
    assert result.exit_code == 0, result.stderr
    intact = max({10, 20, 30, 40, 50} - {*damaged}, default=None)
    assert steps(folder) == ([10, 20, 30, 40, 50] if intact is None else [intact, 50])
    assert ("no intact checkpoint" in result.stderr) == (intact is None)


def test_prune_keeps_active_and_recent_runs_and_those_without_latest(
    type_: Type, fake: FakeTarget, make_run: Callable[..., Path]
) -> None:
    folder = with_checkpoints(make_run("warm", step=50), best=20)
    for state in (replace(OLD, alive=True), replace(OLD, ended=4e9)):
        fake.states = [state]
        assert "no old checkpoints" in type_("runner prune --older-than 1d -y").stderr
    fake.states = [OLD]
    (folder / "latest").unlink()
    assert "no old checkpoints" in type_("runner prune --older-than 1d -y").stderr
    assert len(steps(folder)) == 5
