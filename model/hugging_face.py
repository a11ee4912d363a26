"""Read and write GPT-2 in Hugging Face format: config.json and model.safetensors.

Their matrices of attention and MLP are transposed (Conv1D), and their names start with
``transformer.``; otherwise the names are the same.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from corpus.formats import refuse_other_formats
from job.exit_status import UserError
from job.files import write_atomically, written
from model.gpt import GPT

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
PREFIX = "transformer."
# Buffers of the causal mask in old files; the network does not need them.
MASKS = (".attn.bias", ".attn.masked_bias")


def read_weights(folder: Path, vocab_size: int) -> dict[str, Tensor]:
    """Return the weights under our names, with the vocabulary padded to ``vocab_size`` rows.

    A padding row is the mean of all rows, so its logit is the mean of all logits, and the 47 rows
    to 50,304 get less than 47 / 50,257 of the probability (Jensen): 0.0009 of loss. Rows of zeros
    would get nearly all of it, because GPT-2's logits are about -40 to -100.
    """
    path, weights = folder / "model.safetensors", dict[str, Tensor]()
    if not path.exists():
        raise UserError(f"{folder} has no model.safetensors; give a folder with GPT-2's weights")
    refuse_other_formats(path)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"{path}: not a complete safetensors file: {error}; download it again"
        ) from None
    for name, tensor in tensors.items():
        short = name.removeprefix(PREFIX)
        if short == "lm_head.weight" or short.endswith(MASKS):
            continue  # the head is the embedding
        weights[short] = tensor.t().contiguous() if short.endswith(CONV1D) else tensor
    if (embedding := weights.get("wte.weight")) is None:
        raise UserError(
            f"{folder} is not a GPT-2 in Hugging Face format; other networks are not supported"
        )
    if embedding.size(0) < vocab_size:
        mean = embedding.float().mean(0, keepdim=True).to(embedding.dtype)
        padding = mean.expand(vocab_size - embedding.size(0), -1)
        weights["wte.weight"] = torch.cat((embedding, padding))
    return weights


def export(network: GPT, folder: Path, eot: int | None) -> None:
    """Write ``network`` for ``transformers.GPT2LMHeadModel.from_pretrained(folder)``."""
    config = network.config
    if config.variant != "gpt2":
        raise UserError(
            "transformers has no class for the modern variant; to export, train with "
            "model.variant=gpt2"
        )
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, tensor in network.state_dict().items():
        value = tensor.detach().cpu().t() if name.endswith(CONV1D) else tensor.detach().cpu()
        weights[PREFIX + name] = value.contiguous()
        is_table = name in ("wte.weight", "wpe.weight")
        if not config.bias and name.endswith("weight") and not is_table:
            # Their network always has biases; zeros change nothing.
            weights[PREFIX + name.removesuffix("weight") + "bias"] = torch.zeros(tensor.size(0))
    with written(folder / "model.safetensors") as path:
        save_file(weights, path, metadata={"format": "pt"})
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
