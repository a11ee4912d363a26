"""The real image, built once, and clones to run it from; skipped without a Docker engine."""

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

# The first build downloads torch: gigabytes with CUDA.
BUILD_TIMEOUT_S = 3600

# A user that is not in /etc/passwd and does not run the tests.
UNKNOWN_UID = 12345


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests: they need an engine, and any of them may build the image."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.container)
            item.add_marker(pytest.mark.timeout(BUILD_TIMEOUT_S))


def _answers(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.fixture(scope="session")
def engine() -> None:
    """Skip the test without Docker, Compose and the base image."""
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
            pytest.skip(f"the base image {base} is missing and can't be pulled")


@pytest.fixture(scope="session")
def image(engine: None) -> str:
    """Build the image with Compose and return its id."""
    checkout = Checkout.clone(os.geteuid())
    lock = (Path(tempfile.gettempdir()) / "gpt-runner-image.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # keep two workers from building at once
        checkout.compose("build", "train", timeout=BUILD_TIMEOUT_S)
        listed = checkout.command("docker", "image", "inspect", "--format", "{{.Id}}", "gpt-runner")
        return str(listed.stdout).strip()
    finally:
        lock.close()
        checkout.remove()


@pytest.fixture
def clone(image: str) -> Iterator[Callable[..., Checkout]]:
    """Make fresh clones, by default of the testing user; remove them after the test."""
    made: list[Checkout] = []

    def make(uid: int | None = None) -> Checkout:
        made.append(Checkout.clone(os.geteuid() if uid is None else uid))
        return made[-1]

    yield make
    for checkout in made:
        checkout.remove()


@pytest.fixture
def checkout(clone: Callable[..., Checkout]) -> Checkout:
    """Return a fresh clone that the testing user owns."""
    return clone()


@pytest.fixture
def ordinary(clone: Callable[..., Checkout]) -> Checkout:
    """Return a fresh clone that a user other than root owns."""
    if os.geteuid() != 0:
        return clone()
    if not engine_socket().is_socket():
        pytest.skip("the engine has no local socket that a different user could open")
    return clone(UNKNOWN_UID)
