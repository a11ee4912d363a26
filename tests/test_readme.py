"""Run the commands of README.md: launches with --dry-run, commands that need a run with --help."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.split("  #")[0] for line in README.splitlines() if line.startswith("runner ")]
WITH_DRY_RUN = ("host", "local", "cloud", "sweep")
AS_PRINTED = ("--help", "new", "runs")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a checkout with its own volumes, next to a nanoGPT; link everything else."""
    folder = tmp_path_factory.mktemp("readme") / "checkout"
    folder.mkdir()
    for path in CHECKOUT.iterdir():
        if path.name not in ("volumes", ".git", ".env"):
            (folder / path.name).symlink_to(path)
    for volume in ("data", "checkpoints", "cache"):
        (folder / "volumes" / volume).mkdir(parents=True)
    (folder.parent / "nanoGPT").mkdir()
    (folder.parent / "nanoGPT" / "train.py").touch()
    (folder.parent / "my.txt").write_text("To be, or not to be.\n" * 100, encoding="utf-8")
    return folder


def arguments_of(command: str) -> list[str]:
    """Return the arguments of a README command, with --dry-run for a launch or --help otherwise."""
    program, *words = shlex.split(command)
    assert program == "runner"
    if words[0] in AS_PRINTED:
        return words
    if words[0] not in WITH_DRY_RUN:
        return [words[0], "--help"]
    if {"sample", "evaluate", "export"} & {*words}:  # they need a run
        return [*words[:2], "--help"]
    at = words.index("--") if "--" in words else len(words)
    return [*words[:at], "--dry-run", *words[at:]]


def test_readme_has_commands() -> None:
    assert len(COMMANDS) >= 15


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_readme_works(checkout: Path, command: str) -> None:
    if " local " in command and shutil.which("docker") is None:
        pytest.skip("needs Docker")
    secret = ("MODAL_", "WANDB_", "HF_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(secret)}
    done = subprocess.run(
        [sys.executable, "-m", "runner", *arguments_of(command.replace("~", str(checkout.parent)))],
        cwd=checkout,
        env={**kept, "PYTHONPATH": str(CHECKOUT), "HOME": str(checkout.parent)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
