"""Pretrained weights are downloaded once, and refused if they are of a different network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from corpus import Monitor, download, prepare
from corpus.hub import ensure_weights
from corpus.tokenizer_export import byte_letters
from job.exit_status import RecipeError
from job.paths import VolumePaths
from job.recipe import Recipe, load
from tests.file_server import FileServer
from tests.tiny_recipe import write_recipe, write_text

BASE_PATH = "/me/small/resolve/main"
CONFIG = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32}
WEIGHTS = save({"transformer.wte.weight": np.arange(320, dtype=np.float32).reshape(10, 32)})


@pytest.fixture
def hub(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    server.files |= {
        f"{BASE_PATH}/config.json": json.dumps(CONFIG).encode(),
        f"{BASE_PATH}/model.safetensors": WEIGHTS,
    }
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(download, "BLOCK_BYTES", 100)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return server


def recipe(folder: Path, source: str = "hf://me/small", *words: str) -> Recipe:
    path = write_recipe(folder / "tiny.yaml", str(write_text(folder / "text.txt")))
    return load(path, [f"init_from={source}", "variant=gpt2", *words])


def ensure(folder: Path, *words: str) -> Path:
    monitor = Monitor(pause=lambda seconds: None)
    ensure_weights(recipe(folder, *words), {"name": "bytes"}, VolumePaths.current(), monitor)
    return VolumePaths.current().cache / "pretrained" / "me--small--main"


def test_weights_are_downloaded_once_over_a_bad_network(hub: FileServer, tmp_path: Path) -> None:
    hub.troubles = {
        f"{BASE_PATH}/model.safetensors": [50, 503, 70, "no range"],
        f"{BASE_PATH}/config.json": [429],
    }
    folder = ensure(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    hub.requests.clear()
    ensure(tmp_path)
    assert hub.requests == []


def test_requests_have_the_revision_and_the_token(
    hub: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files = {path.replace("main", "v2"): content for path, content in hub.files.items()}
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    ensure(tmp_path, "hf://me/small@v2")
    assert {authorization for *_, authorization in hub.requests} == {"Bearer hf_x"}
    assert (
        VolumePaths.current().cache / "pretrained" / "me--small--v2" / "model.safetensors"
    ).exists()


def vocabulary() -> dict[str, int]:
    """Return the numbers of the dataset's tokens, by Hugging Face's letters for bytes."""
    return {letter: byte for byte, letter in enumerate(byte_letters())}


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_a_vocabulary_with_other_numbers_is_refused_before_the_weights(
    hub: FileServer, tmp_path: Path, name: str
) -> None:
    def serve(vocab: dict[str, int]) -> None:
        tree = {"model": {"vocab": vocab}} if name == "tokenizer.json" else vocab
        hub.files[f"{BASE_PATH}/{name}"] = json.dumps(tree).encode()

    right = {**vocabulary(), "<|endoftext|>": 256}
    serve({**right, "a": right["b"], "b": right["a"]})  # of the same size
    with pytest.raises(RecipeError, match=rf"tokens of me/small/{name} are not .*\(bytes\)"):
        ensure(tmp_path)
    folder = VolumePaths.current().cache / "pretrained" / "me--small--main"
    assert not (folder / "model.safetensors").exists()
    (folder / name).unlink()
    serve(right)
    assert (ensure(tmp_path) / name).exists()


def test_different_network_is_refused_before_its_weights_are_downloaded(
    hub: FileServer, tmp_path: Path
) -> None:
    hub.files[f"{BASE_PATH}/config.json"] = json.dumps(
        {**CONFIG, "n_layer": 3, "n_head": 4}
    ).encode()
    with pytest.raises(RecipeError, match=r"than the recipe's; write n_layer=3 n_head=4$"):
        ensure(tmp_path)
    assert [path for path, *_ in hub.requests] == [f"{BASE_PATH}/config.json"]
    hub.files[f"{BASE_PATH}/config.json"] = b'{"model_type": "llama"}'
    with pytest.raises(RecipeError, match="me/small is not a GPT-2"):
        ensure(tmp_path)


def test_missing_private_and_damaged_weights_are_refused(hub: FileServer, tmp_path: Path) -> None:
    hub.files[f"{BASE_PATH}/model.safetensors"] = WEIGHTS[:-1]
    with pytest.raises(RecipeError, match="not a complete safetensors file"):
        ensure(tmp_path)
    del hub.files[f"{BASE_PATH}/model.safetensors"]
    with pytest.raises(
        RecipeError, match=r"404.*; a repository needs config.json and model.safetensors"
    ):
        ensure(tmp_path)
    hub.troubles = {f"{BASE_PATH}/model.safetensors": [401]}
    with pytest.raises(
        RecipeError, match=r"argument 'init_from=hf://me/small': .* 401 .*that HF_TOKEN belongs"
    ):
        ensure(tmp_path)


def test_prepare_downloads_the_weights(hub: FileServer, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "tiny.yaml", str(write_text(tmp_path / "text.txt")))
    assert prepare.main([str(path), "init_from=hf://me/small", "variant=gpt2"]) == 0
    assert (
        VolumePaths.current().cache / "pretrained" / "me--small--main" / "model.safetensors"
    ).exists()


class TestRecipe:
    def test_openai_names_require_their_shape(self, tmp_path: Path) -> None:
        words = "n_layer=24 n_head=16 n_embd=1024 block_size=1024"
        with pytest.raises(RecipeError, match=rf"'init_from=gpt2-medium': .* use {words}$"):
            recipe(tmp_path, "gpt2-medium")
        whole = recipe(tmp_path, "gpt2-medium", *words.split(), "global_batch_tokens=1024")
        assert whole.train.init_from == "gpt2-medium"

    def test_an_invalid_address_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(
            RecipeError, match="invalid Hub address hf://small; expected hf://OWNER/NAME"
        ):
            recipe(tmp_path, "hf://small")

    def test_zero_steps_require_initial_weights(self, tmp_path: Path) -> None:
        assert recipe(tmp_path, "other", "max_steps=0").train.max_steps == 0
        with pytest.raises(RecipeError, match="max_steps=0 trains nothing: use at least 1"):
            recipe(tmp_path, "null", "max_steps=0")
