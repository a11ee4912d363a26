"""Run the commands of examples/README.md as printed, in a copy of the checkout."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CHECKOUT

README = (CHECKOUT / "examples" / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for line in README.splitlines() if line.startswith("runner ")]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a checkout with its own examples and volumes; link everything else."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    own = {"examples", "volumes", ".git", ".env"}
    for path in CHECKOUT.iterdir():
        if path.name not in own:
            (folder / path.name).symlink_to(path)
    ignore = shutil.ignore_patterns("out", "__pycache__")
    shutil.copytree(CHECKOUT / "examples", folder / "examples", ignore=ignore)
    return folder


def run(checkout: Path, command: str) -> str:
    """Run a command of the README; return what it printed."""
    program, *words = shlex.split(command)
    assert program == "runner"
    done = subprocess.run(
        [sys.executable, "-m", "runner", *words],
        cwd=checkout,
        env={
            **{key: value for key, value in os.environ.items() if not key.endswith("_PATH")},
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(CHECKOUT),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def find_command(text: str) -> str:
    (command,) = [command for command in COMMANDS if text in command]
    return command


def read_record(checkout: Path, run_name: str) -> dict[str, Any]:
    path = checkout / "volumes" / "checkpoints" / run_name / "run.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_readme_has_one_command_for_each_example() -> None:
    assert len(COMMANDS) == 4


def test_experiment(checkout: Path) -> None:
    run(checkout, find_command("run examples/activation.py"))
    record = read_record(checkout, "activation")
    assert record["status"] == "finished"
    assert record["result"]["val_loss"] < 0.1


@pytest.mark.slow
def test_sweep(checkout: Path) -> None:
    run(checkout, find_command("activation_sweep.yaml"))
    path = checkout / "volumes" / "checkpoints" / "activation_sweep" / "sweep.json"
    assert path.is_file()
    names = [f"activation_sweep-{number:03d}" for number in range(1, 4)]
    assert {read_record(checkout, name)["status"] for name in names} == {"finished"}


def test_script(checkout: Path) -> None:
    assert "step 200: loss" in run(checkout, find_command("-- python train.py"))
    assert (checkout / "volumes" / "checkpoints" / "script" / "out" / "ckpt.pt").is_file()


def test_pipeline(checkout: Path) -> None:
    command = find_command("pipeline.yaml")
    assert "validation loss" in run(checkout, command)
    assert "skipped" in run(checkout, command)  # the first stage, whose output exists
