"""Fixtures for all tests."""

from __future__ import annotations

import compileall
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before torch is imported, in this process and in its children. The networks of the tests are
# too small for two threads: these would spin while they wait for each other, most of all on a busy
# machine. Without this line, test_sample.py takes 11 s of CPU instead of 5. Containers do not
# inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CHECKOUT = Path(__file__).resolve().parent.parent
PRODUCT = ("corpus", "experiment", "inference", "job", "model", "runner", "serving")


def pytest_configure(config: pytest.Config) -> None:
    """Compile the product once if Python may not: hundreds of processes would each do it."""
    if sys.dont_write_bytecode and not hasattr(config, "workerinput"):
        for package in PRODUCT:
            compileall.compile_dir(CHECKOUT / package, quiet=2)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Restore the environment: jobs set the paths of volumes, which later tests must not see."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real texts, which are not part of the repository."""
    folder = Path(os.environ.get("GPT_RUNNER_TEST_DATA") or CHECKOUT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(
            f"no real texts in {folder}; set GPT_RUNNER_TEST_DATA to the folder that has them"
        )
    return folder
