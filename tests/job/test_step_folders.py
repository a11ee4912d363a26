"""Deletion of old checkpoints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from job.step_folders import (
    FILES,
    LATEST,
    MANIFEST,
    find_damage,
    prune,
    remove_leftovers,
    sha256,
    step_folder,
    steps,
)


def write_checkpoint(run: Path, step: int) -> Path:
    folder = step_folder(run, step)
    folder.mkdir(parents=True)
    manifest = {}
    for path in (folder / name for name in FILES):
        path.write_bytes(b"%b of %d" % (path.name.encode(), step))
        manifest[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    (run / LATEST).write_text(f"{folder.name}\n")
    return folder


def damage(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")


def test_only_the_newest_and_the_named_ones_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, step)
    prune(tmp_path, 2, {1})
    assert steps(tmp_path) == [1, 3, 4]


def test_damaged_newer_checkpoint_does_not_replace_the_one_just_written(tmp_path: Path) -> None:
    """The run resumed at step 10, because step 20 is damaged, and wrote step 12."""
    write_checkpoint(tmp_path, 10)
    damage(write_checkpoint(tmp_path, 20))
    write_checkpoint(tmp_path, 12)
    prune(tmp_path, 1, set())
    assert steps(tmp_path) == [12, 20]


def test_damaged_older_checkpoint_does_not_count(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1)
    damage(write_checkpoint(tmp_path, 2))
    write_checkpoint(tmp_path, 3)
    prune(tmp_path, 2, set())
    assert steps(tmp_path) == [1, 2, 3]
    write_checkpoint(tmp_path, 4)
    prune(tmp_path, 2, set())
    assert steps(tmp_path) == [3, 4]


@pytest.mark.parametrize("latest", [None, "", "step_00000009\n", "nonsense"])
def test_lost_latest_file_loses_no_intact_checkpoint(tmp_path: Path, latest: str | None) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path, step)
    damage(write_checkpoint(tmp_path, 3))
    (tmp_path / LATEST).unlink()
    if latest is not None:
        (tmp_path / LATEST).write_text(latest)
    prune(tmp_path, 1, set())
    assert steps(tmp_path) == [2, 3]


def test_kill_while_deleting_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path, step)
    code = (
        "import os, shutil, signal, sys\nfrom pathlib import Path\nimport job.step_folders as s\n"
        "def kill(path, ignore_errors=False):\n"
        "    if os.path.isdir(path):\n"
        "        os.unlink(Path(path) / 'model.safetensors')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "shutil.rmtree = kill\n"
        "s.prune(Path(sys.argv[1]), 1, set())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=os.getcwd())
    assert done.returncode == -signal.SIGKILL
    assert steps(tmp_path) == [2]
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LATEST, "step_00000002"]


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1)
    leftovers = [
        ".run.json.123.tmp",
        "samples/.step_00000001.txt.9.tmp",
        ".partial_step_00000002/x",
    ]
    others = [".run.json.tmp", "mine.tmp", ".hidden", "samples/step_00000001.txt"]
    for name in leftovers + others:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    in_use = tmp_path / ".launch.json.5.tmp"
    in_use.touch()
    remove_leftovers(tmp_path)
    assert in_use.exists()
    assert [name for name in others if not (tmp_path / name).exists()] == []
    assert [name for name in leftovers if (tmp_path / name).exists()] == []
    assert not (tmp_path / ".partial_step_00000002").exists()
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize("content", ["", "[]", "{}", "7", '{"model.safetensors": 3}'])
def test_damaged_manifest_is_damage(tmp_path: Path, content: str) -> None:
    folder = write_checkpoint(tmp_path, 1)
    assert find_damage(folder) == ""
    (folder / MANIFEST).write_text(content)
    assert MANIFEST in find_damage(folder)
