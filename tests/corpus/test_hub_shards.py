"""FineWeb's shards: downloaded over a bad network, verified, then renamed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from corpus import DataError, Monitor, download
from corpus.build import prepare
from corpus.dataset import TokenStream, dataset_meta
from corpus.hub import download_shards
from corpus.verify import is_prepared
from job.exit_status import Interrupted
from job.recipe import DataConfig
from tests.file_server import FileServer

CONFIG = DataConfig(dataset="fineweb10B", source="fineweb10B", shards=3)
NAMES = ["fineweb_val_000000.bin", *(f"fineweb_train_{i:06d}.bin" for i in (1, 2, 3))]
BASE_PATH = "/datasets/kjj0/fineweb10B-gpt2/resolve/main"


@pytest.fixture
def published(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    for seed, name in enumerate(NAMES):
        tokens = np.random.default_rng(seed).integers(0, 50257, 5000, dtype=np.uint16)
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, 5000
        server.files[f"{BASE_PATH}/{name}"] = header.tobytes() + tokens.tobytes()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(download, "BLOCK_BYTES", 10)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return server


def fetch(folder: Path, config: DataConfig = CONFIG) -> list[float]:
    folder.mkdir(parents=True, exist_ok=True)
    pauses: list[float] = []
    download_shards(config, folder, False, Monitor(pause=pauses.append))
    return pauses


def same(server: FileServer, folder: Path) -> bool:
    return all(
        (folder / name).read_bytes() == server.files[f"{BASE_PATH}/{name}"] for name in NAMES
    )


def test_shards_are_downloaded_unchanged(published: FileServer, tmp_path: Path) -> None:
    assert fetch(tmp_path) == []
    assert same(published, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(
        [*NAMES, "meta.json"]
    )
    meta = dataset_meta(tmp_path)
    assert (meta.train_tokens, meta.val_tokens, meta.tokenizer) == (15_000, 5_000, {"name": "gpt2"})
    assert len(TokenStream(tmp_path, "train")) == 15_000
    assert is_prepared(CONFIG, tmp_path)


def test_cut_connections_and_busy_servers_are_retried(
    published: FileServer, tmp_path: Path
) -> None:
    published.troubles = {
        f"{BASE_PATH}/{NAMES[0]}": [50, 300, 503],  # 50 bytes, 300 bytes, status 503, the rest
        f"{BASE_PATH}/{NAMES[1]}": [503, 429, 90],
        f"{BASE_PATH}/{NAMES[2]}": [99, "no range", 0],
    }
    pauses = fetch(tmp_path)
    assert same(published, tmp_path)
    assert sorted(pauses) == [1, 1, 1, 1, 1, 2, 2]
    ranges = [wanted for path, wanted, _ in published.requests if path == f"{BASE_PATH}/{NAMES[0]}"]
    assert ranges[:2] == [None, "bytes=50-"]


def test_an_interrupted_download_resumes(published: FileServer, tmp_path: Path) -> None:
    published.troubles = {f"{BASE_PATH}/{NAMES[2]}": [80] + [503] * 6}
    with pytest.raises(
        DataError,
        match="answers 503 Service Unavailable, 6 times; run the same command later to resume",
    ):
        fetch(tmp_path)
    assert not (tmp_path / "meta.json").exists()
    assert not is_prepared(CONFIG, tmp_path)
    assert (tmp_path / f".{NAMES[2]}.part").stat().st_size == 80
    published.requests.clear()
    fetch(tmp_path)
    assert same(published, tmp_path)
    assert (f"{BASE_PATH}/{NAMES[2]}", "bytes=80-", None) in published.requests
    assert len(published.requests) < 4  # complete shards are not requested again


def test_a_stopped_download_keeps_its_parts(published: FileServer, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        download_shards(CONFIG, tmp_path, False, Monitor(should_stop=lambda: True))
    assert not (tmp_path / "meta.json").exists()
    fetch(tmp_path)
    assert same(published, tmp_path)


def test_a_complete_part_is_renamed(published: FileServer, tmp_path: Path) -> None:
    (tmp_path / f".{NAMES[1]}.part").write_bytes(published.files[f"{BASE_PATH}/{NAMES[1]}"])
    fetch(tmp_path)
    assert same(published, tmp_path)


@pytest.mark.parametrize("damage", [lambda raw: b"<html>" + raw[6:], lambda raw: raw[:-2]])
def test_a_damaged_shard_is_never_renamed(
    published: FileServer, tmp_path: Path, damage: object
) -> None:
    good = published.files[f"{BASE_PATH}/{NAMES[1]}"]
    published.files[f"{BASE_PATH}/{NAMES[1]}"] = damage(good)  # type: ignore[operator]
    with pytest.raises(DataError, match=f"{NAMES[1]}: .*(not a token shard|damaged: )"):
        fetch(tmp_path)
    assert not (tmp_path / NAMES[1]).exists()
    published.files[f"{BASE_PATH}/{NAMES[1]}"] = good
    fetch(tmp_path)
    assert same(published, tmp_path)


def test_more_shards_are_added_to_a_dataset(published: FileServer, tmp_path: Path) -> None:
    fetch(tmp_path, CONFIG.model_copy(update={"shards": 1}))
    assert not is_prepared(CONFIG, tmp_path)
    published.requests.clear()
    fetch(tmp_path)
    assert {path for path, *_ in published.requests} == {
        f"{BASE_PATH}/{name}" for name in NAMES[2:]
    }
    assert dataset_meta(tmp_path).train_tokens == 15_000


def test_the_token_is_sent(
    published: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    fetch(tmp_path)
    assert {authorization for *_, authorization in published.requests} == {"Bearer hf_x"}


def test_a_missing_shard_and_a_missing_server_are_named(
    published: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del published.files[f"{BASE_PATH}/{NAMES[3]}"]
    with pytest.raises(DataError, match=f"{NAMES[3]}: the server answers 404"):
        fetch(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="can't be reached"):
        fetch(tmp_path)


def test_shards_of_another_program_are_a_dataset(published: FileServer, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_bytes(published.files[f"{BASE_PATH}/{name}"])
    meta = dataset_meta(tmp_path)
    assert (meta.train_tokens, meta.val_tokens, meta.vocab_size) == (15_000, 5_000, 50257)
    assert is_prepared(DataConfig(dataset="mine"), tmp_path)
    with pytest.raises(DataError, match="tokenizer was gpt2, now bytes"):
        is_prepared(DataConfig(dataset="mine", tokenizer="bytes"), tmp_path)


def test_force_replaces_a_damaged_shard_and_keeps_the_rest(
    published: FileServer, tmp_path: Path
) -> None:
    prepare(CONFIG, tmp_path)
    (tmp_path / NAMES[2]).write_bytes(b"damage")
    (tmp_path / "other_train_000001.bin").write_bytes(b"of the dataset that is replaced")
    with pytest.raises(DataError, match="--force"):
        prepare(CONFIG, tmp_path)
    published.requests.clear()
    prepare(CONFIG, tmp_path, force=True)
    assert same(published, tmp_path)
    assert [path for path, *_ in published.requests] == [f"{BASE_PATH}/{NAMES[2]}"]
    assert not (tmp_path / "other_train_000001.bin").exists()
