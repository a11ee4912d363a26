"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real texts, which are not part of the repository: GPT_RUNNER_TEST_DATA or ../shared/data."""
    folder = Path(os.environ.get("GPT_RUNNER_TEST_DATA") or CHECKOUT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real texts in {folder}; GPT_RUNNER_TEST_DATA names the folder that has them")
    return folder
