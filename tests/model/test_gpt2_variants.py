"""GPT-2 in Hugging Face format: the function of transformers to 1e-5, or refused with the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from corpus.tokenizer_export import write_tokenizer
from corpus.tokenizers import ByteTokenizer, CharTokenizer
from job.recipe import ModelConfig
from model.gpt import GPT
from model.load_run import read_gpt2

ROWS = 320
CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=32)
ACCEPTED: list[dict[str, Any]] = [
    {},
    {"activation_function": "gelu_pytorch_tanh"},
    {"n_inner": 128},
    {"reorder_and_upcast_attn": True},
    {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
]
REFUSED_FORMATS: list[dict[str, Any]] = [
    {"n_head": 4},
    {"activation_function": "gelu"},
    {"activation_function": "relu"},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False},
    {"layer_norm_epsilon": 1e-2},
    {"n_inner": 64},
    {"n_positions": 48},
    {"add_cross_attention": True},
    {"vocab_size": 256},
]


def make(folder: Path, **changes: Any) -> Any:
    """Save a random model of transformers with ``changes`` in its configuration."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32, "vocab_size": ROWS}
    config = transformers.GPT2Config(**sizes | {"initializer_range": 0.4} | changes)
    reference = transformers.GPT2LMHeadModel(config).eval()
    reference.save_pretrained(folder)
    return reference


def read(folder: Path) -> GPT:
    network = GPT(CONFIG, ROWS).eval()
    network.load_state_dict(read_gpt2(folder, network, ByteTokenizer()))
    return network


def difference(reference: Any, network: GPT) -> float:
    ids = torch.randint(0, ROWS, (2, 32), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, found = reference(ids).logits.log_softmax(-1), network(ids).log_softmax(-1)
    return float((expected - found).abs().max() / expected.abs().max())


@pytest.mark.parametrize("changes", ACCEPTED, ids=str)
def test_the_same_function_is_read(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert difference(make(tmp_path, **changes), read(tmp_path)) < 1e-5


@pytest.mark.parametrize("changes", REFUSED_FORMATS, ids=str)
def test_another_function_is_refused_with_the_key(tmp_path: Path, changes: dict[str, Any]) -> None:
    make(tmp_path, **changes)
    (key,) = changes
    with pytest.raises(ValueError, match=key.replace("n_positions", "block_size")):
        read(tmp_path)


def test_untied_head_is_refused_unless_it_is_equal(tmp_path: Path) -> None:
    make(tmp_path, tie_word_embeddings=False)
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        read(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()
    save_file(weights, path)
    read(tmp_path)


def test_a_tied_matrix_under_the_name_of_the_head_is_read(tmp_path: Path) -> None:
    reference, path = make(tmp_path), tmp_path / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"] = weights.pop("transformer.wte.weight")
    save_file(weights, path)
    assert difference(reference, read(tmp_path)) < 1e-5


def test_scaling_by_the_layer_has_no_effect_with_one_layer(tmp_path: Path) -> None:
    reference = make(tmp_path, n_layer=1, scale_attn_by_inverse_layer_idx=True)
    network = GPT(CONFIG.model_copy(update={"n_layer": 1}), ROWS).eval()
    network.load_state_dict(read_gpt2(tmp_path, network, ByteTokenizer()))
    assert difference(reference, network) < 1e-5


def test_the_tokenizer_of_the_folder_must_be_the_datasets(tmp_path: Path) -> None:
    make(tmp_path)
    write_tokenizer(ByteTokenizer(), tmp_path, 32, ROWS)
    read(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    letters = {chr(0x100 + i): i for i in range(257)}
    (tmp_path / "vocab.json").write_text(json.dumps(letters))
    with pytest.raises(ValueError, match=r"vocab\.json: not the tokenizer"):
        read(tmp_path)
    write_tokenizer(CharTokenizer(map(chr, range(257))), tmp_path, 32, ROWS)
    with pytest.raises(ValueError, match=r"tokenizer\.json: not the tokenizer"):
        read(tmp_path)
