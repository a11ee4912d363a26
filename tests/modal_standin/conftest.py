"""The stand-in, for its own tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.modal_standin import ModalStandin


@pytest.fixture
def modal(tmp_path: Path) -> Iterator[ModalStandin]:
    """Start a stand-in, and fail the test if it has an error of its own."""
    with ModalStandin(tmp_path / "state", grace=5.0) as standin:
        yield standin
        assert standin.errors() == []
        assert standin.unimplemented() == []
