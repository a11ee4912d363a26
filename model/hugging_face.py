"""GPT-2 in Hugging Face's format: config.json and model.safetensors, both ways.

Theirs keeps the matrices of attention and MLP transposed (Conv1D) and names everything below
``transformer.``; the other names are ours too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from job.exit_status import UserError
from job.files import write_atomically
from job.recipe import ModelConfig
from model.gpt import GPT

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
PREFIX = "transformer."
# Buffers of the causal mask, which old files hold and no network needs.
MASKS = (".attn.bias", ".attn.masked_bias")


def read_config(folder: Path) -> tuple[ModelConfig, int]:
    """The network's shape and its vocabulary by ``folder``'s config.json."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "gpt2":
        raise UserError(f"{folder}: model_type is {config.get('model_type')!r}; only gpt2 can be read")
    shape = ModelConfig(
        variant="gpt2",
        n_layer=config["n_layer"],
        n_head=config["n_head"],
        n_embd=config["n_embd"],
        block_size=config.get("n_positions", 1024),
    )
    return shape, config["vocab_size"]


def read_weights(folder: Path, vocab_size: int) -> dict[str, Tensor]:
    """The weights under our names; rows of the vocabulary are filled up with zeros to ``vocab_size``."""
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        short = name.removeprefix(PREFIX)
        if short == "lm_head.weight" or short.endswith(MASKS):
            continue  # the head is the embedding
        weights[short] = tensor.t().contiguous() if short.endswith(CONV1D) else tensor
    embedding = weights["wte.weight"]
    if embedding.size(0) < vocab_size:
        filling = embedding.new_zeros(vocab_size - embedding.size(0), embedding.size(1))
        weights["wte.weight"] = torch.cat((embedding, filling))
    return weights


def load_gpt2(folder: Path) -> GPT:
    """The network of a folder of Hugging Face's, as it is there."""
    shape, vocab_size = read_config(folder)
    network = GPT(shape, vocab_size)
    network.load_state_dict(read_weights(folder, vocab_size))
    return network


def export(network: GPT, folder: Path, eot: int | None) -> None:
    """Write ``network`` so that ``transformers.GPT2LMHeadModel.from_pretrained(folder)`` reads it."""
    config = network.config
    if config.variant != "gpt2":
        raise UserError(
            "transformers has no class for the modern variant; train with model.variant=gpt2 to export"
        )
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, tensor in network.state_dict().items():
        value = tensor.detach().cpu().t() if name.endswith(CONV1D) else tensor.detach().cpu()
        weights[PREFIX + name] = value.contiguous()
        if not config.bias and name.endswith("weight") and name not in ("wte.weight", "wpe.weight"):
            width = tensor.size(0)  # theirs always has biases; zeros change nothing
            weights[PREFIX + name.removesuffix("weight") + "bias"] = torch.zeros(width)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    description = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": network.vocab_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_positions": config.block_size,
        "layer_norm_epsilon": 1e-5,
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "bos_token_id": eot,
        "eos_token_id": eot,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    write_atomically(folder / "config.json", json.dumps(description, indent=2) + "\n")
