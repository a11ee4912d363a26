"""A user's command in the real container: its folder, persisted paths and --setup."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.checkout import ROOT, Checkout
from tests.runner.nanogpt_folder import make_folder


@pytest.fixture
def folder(checkout: Checkout) -> Path:
    return make_folder(checkout.folder.parent / "nano")


def runner(checkout: Checkout, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {"PYTHONPATH": str(ROOT), "HOST_UID": "", "HOST_GID": ""}
    return checkout.command(sys.executable, "-m", "runner", *words, environ=environ)


PERSIST = ("--dir", "../nano", "--persist", "out=checkpoints", "--persist", "data=data")


def test_prepare_train_and_resume_leave_their_files_to_the_user(
    checkout: Checkout, folder: Path
) -> None:
    assert (
        runner(checkout, "local", *PERSIST, "--", "python", "data/letters/prepare.py").stdout
        == "prepared\n"
    )
    resume = ("--resume-with=--init_from=resume", "--resume-if=out/ckpt.pt")
    words = ("local", *PERSIST, *resume, "--", "python", "train.py", "config/short.py")
    assert "model: model of the folder" in runner(checkout, *words).stdout
    assert "resuming at 5" in runner(checkout, *words).stdout
    volumes = checkout.folder / "volumes"
    assert (volumes / "checkpoints" / "nano" / "out" / "ckpt.pt").read_text() == "5"
    assert (volumes / "data" / "nano" / "data" / "letters" / "train.bin").is_file()
    record = json.loads((volumes / "checkpoints" / "nano-train" / "run.json").read_text())
    assert [attempt["reason"] for attempt in record["attempts"]] == ["finished", "finished"]
    assert not (folder / "out" / "ckpt.pt").exists()
    assert set(checkout.owners().values()) == {os.geteuid()}


@pytest.fixture
def remove_setup_images() -> Iterator[None]:
    yield
    listed = subprocess.run(
        ["docker", "images", "--quiet", "gpt-runner-setup"],
        capture_output=True,
        text=True,
        check=True,
    )
    for image in set(listed.stdout.split()):
        subprocess.run(["docker", "image", "rm", "--force", image], capture_output=True)


def test_setup_is_built_once(checkout: Checkout, folder: Path, remove_setup_images: None) -> None:
    (folder / "setup.sh").write_text("echo added > /opt/gpt-runner/added\n")
    words = (
        "local",
        "--dir",
        "../nano",
        "--setup",
        "bash setup.sh",
        "--",
        "cat",
        "/opt/gpt-runner/added",
    )
    first, again = runner(checkout, *words), runner(checkout, *words)
    assert (first.stdout, again.stdout) == ("added\n", "added\n")
    assert "extending the image" in first.stderr
    assert "extending the image" not in again.stderr
