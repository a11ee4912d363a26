"""The real image, built once, and clones to run it from. Without an engine all of this is skipped."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.container.checkout import Checkout, engine_socket

HERE = Path(__file__).resolve().parent

# The first build downloads torch; with CUDA these are gigabytes.
BUILD_SECONDS = 3600

# No machine's /etc/passwd has it, and it is not the uid of whoever tests.
STRANGER = 12345


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What stands in this folder needs an engine, and may be the test that waits for the build."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.container)
            item.add_marker(pytest.mark.timeout(BUILD_SECONDS))


def _answers(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker engine and compose on this machine, with the base image in reach."""
    if shutil.which("docker") is None:
        pytest.skip("Docker is not installed")
    if not _answers("docker", "info"):
        pytest.skip("no Docker engine answers")
    if not _answers("docker", "compose", "version"):
        pytest.skip("docker compose is not installed")
    base = "python:3.11-slim-bookworm"
    if not _answers("docker", "image", "inspect", base):
        pull = subprocess.run(["docker", "pull", "--quiet", base], capture_output=True, text=True)
        if pull.returncode:
            pytest.skip(f"the base image {base} is not there and can't be pulled")


@pytest.fixture(scope="session")
def image(engine: None) -> str:
    """The image as compose builds it; its id."""
    checkout = Checkout.clone(os.geteuid())
    lock = (Path(tempfile.gettempdir()) / "gpt-runner-image.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two workers of the suite would both install everything
        checkout.compose("build", "train", timeout=BUILD_SECONDS)
        listed = checkout.command("docker", "image", "inspect", "--format", "{{.Id}}", "gpt-runner")
        return str(listed.stdout).strip()
    finally:
        lock.close()
        checkout.remove()


@pytest.fixture
def clone(image: str) -> Iterator[Callable[..., Checkout]]:
    """Make fresh clones, of the testing user or of another; their containers end with the test."""
    made: list[Checkout] = []

    def make(uid: int | None = None) -> Checkout:
        made.append(Checkout.clone(os.geteuid() if uid is None else uid))
        return made[-1]

    yield make
    for checkout in made:
        checkout.remove()


@pytest.fixture
def checkout(clone: Callable[..., Checkout]) -> Checkout:
    """A fresh clone of the testing user."""
    return clone()


@pytest.fixture
def ordinary(clone: Callable[..., Checkout]) -> Checkout:
    """A fresh clone of a user who is not root: a stranger if root tests, else the testing user."""
    if os.geteuid() != 0:
        return clone()
    if not engine_socket().is_socket():
        pytest.skip("the engine is not on a local socket that another user could open")
    return clone(STRANGER)
