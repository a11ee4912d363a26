from __future__ import annotations

import lzma
from collections.abc import Iterator
from pathlib import Path

import pytest

from corpus.tokenizers import GPT2Tokenizer
from tests.file_server import FileServer, serving


@pytest.fixture(autouse=True)
def volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test its own volumes, and remove proxies, which would hide local servers."""
    for name in ("DATA", "CHECKPOINTS", "CACHE"):
        monkeypatch.setenv(f"{name}_PATH", str(tmp_path / "volumes" / name.lower()))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "volumes"


@pytest.fixture
def gpt2(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> GPT2Tokenizer:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data / "tiktoken"))
    return GPT2Tokenizer()


@pytest.fixture(scope="session")
def novels(shared_data: Path) -> bytes:
    return lzma.decompress((shared_data / "novels.txt.xz").read_bytes())


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as server:
        yield server
