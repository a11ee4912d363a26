"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported, here and in what the tests start: their networks are too small for two threads, which spin
# while they wait for each other, and the more where the cores have other work. Without it test_sample.py takes 11 s
# of CPU, not 5. What starts in a container has the threads that its users have.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real texts, which are not part of the repository: GPT_RUNNER_TEST_DATA or ../shared/data."""
    folder = Path(os.environ.get("GPT_RUNNER_TEST_DATA") or CHECKOUT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(
            f"no real texts in {folder}; GPT_RUNNER_TEST_DATA names the folder that has them"
        )
    return folder
