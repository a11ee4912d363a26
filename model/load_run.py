"""Weights from outside: a trained run for sample, evaluate and export; initial weights for train.

Weights are accepted only for the same function: shapes show neither the number of heads nor what
a token stands for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from corpus.formats import refuse_other_formats
from corpus.tokenizer_export import foreign_tokenizer
from corpus.tokenizers import Tokenizer, read_tokenizer, same_tokens, vocabulary
from corpus.verify import tokenizer_of_run
from job.arguments import say
from job.compatibility import other_network
from job.exit_status import UserError
from job.paths import VolumePaths
from job.pretrained import pretrained, refuse_other_gpt2
from job.recipe import Recipe, changes, load
from job.run_record import RUN_NAME, find_run, read_record, without_checkpoint
from job.step_folders import STEP_FOLDER
from model import checkpoint
from model import device as devices
from model.gpt import GPT

# Matrices that Hugging Face's GPT-2 stores transposed. Names also start with PREFIX there.
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
PREFIX = "transformer."
# Buffers of the causal mask in old files; the network does not need them.
MASKS = (".attn.bias", ".attn.masked_bias")


@dataclass(frozen=True)
class TrainedRun:
    """A run with the network of its newest intact checkpoint."""

    folder: Path
    recipe: Recipe
    network: GPT
    tokenizer: Tokenizer
    step: int


def open_run(name: str | None, overrides: list[str], device_kind: str | None) -> TrainedRun:
    """Load the newest intact checkpoint of run ``name``, or of the newest run, onto a device."""
    locations = VolumePaths.current()
    locations.set_defaults()
    device = devices.pick_device(device_kind, 0)
    folder = find_run(name, locations.checkpoints)
    recipe = load(folder / "recipe.yaml", overrides, section="sample")
    for key, (old, _) in changes(load(folder / "recipe.yaml"), recipe).items():
        if key.startswith("model.") or key == "data.tokenizer":
            why = f"run {folder.name} was trained with {key}={old}, which is fixed; remove it"
            raise recipe.mistake(key, why)
    record = read_record(folder)
    recorded = record.dataset if record is not None else {}
    tokenizer = tokenizer_of_run(folder, recorded, locations.dataset(recipe.data.dataset))
    newest = checkpoint.weights(folder, say)
    if newest is None:
        raise without_checkpoint(folder)
    weights, step = newest
    network = GPT(recipe.model, vocabulary(recipe, tokenizer))
    network.load_state_dict(weights)
    return TrainedRun(folder, recipe, network.to(device), tokenizer, step)


def load_initial_weights(
    network: GPT,
    tokenizer: Tokenizer,
    source: str,
    locations: VolumePaths,
    say: Callable[[str], None],
) -> None:
    """Copy the weights of ``train.init_from`` into ``network``.

    ``source`` is a run, a checkpoint folder, or GPT-2 in a folder or on the Hugging Face Hub.
    """
    path = Path(source)
    if hub := pretrained(source):
        path = locations.cache / hub.folder
    elif RUN_NAME.match(source) and (locations.run(source).exists() or not path.exists()):
        path = locations.run(source)  # also if a folder of this name is in the current folder
    try:
        if (path / "config.json").exists():
            weights = read_gpt2(path, network, tokenizer)
        else:
            weights = _checkpoint_weights(path, network, tokenizer, say)
    except (ValueError, checkpoint.DamagedCheckpoint) as error:
        raise UserError(f"train.init_from: {error}") from None
    own = network.state_dict()
    for name in own.keys() | weights.keys():
        expected, given = (
            tuple(side[name].shape) if name in side else "missing" for side in (own, weights)
        )
        if expected != given:
            raise UserError(
                f"train.init_from: {source} does not fit the recipe's model: {name} is {given}, "
                f"the recipe's is {expected}; use its n_layer, n_head, n_embd, block_size, bias "
                "and variant"
            )
    checkpoint.restore_model({p: name for name, p in network.named_parameters()}, weights)
    say(f"initial weights: {path}")


def read_gpt2(folder: Path, network: GPT, tokenizer: Tokenizer) -> checkpoint.Tensors:
    """Return the weights of a Hugging Face folder under our names; ValueError if they do not fit.

    The vocabulary is padded with the mean of all rows, so a padding row's logit is the mean of all
    logits, and the 47 rows to 50,304 get less than 47 / 50,257 of the probability (Jensen): 0.0009
    of loss. Rows of zeros would get nearly all of it, because GPT-2's logits are about -40 to -100.
    """
    config = folder / "config.json"
    rows = refuse_other_gpt2(config, network.config, str(config))
    if not tokenizer.vocab_size <= rows <= network.vocab_size:
        raise ValueError(
            f"{config}: vocab_size is {rows}, but the dataset's tokenizer ({tokenizer.name}) has "
            f"{tokenizer.vocab_size} tokens in {network.vocab_size} rows; use the weights' tokenizer"
        )
    if foreign := foreign_tokenizer(tokenizer, folder):
        raise ValueError(
            f"{foreign}: not the dataset's tokenizer ({tokenizer.name}): its tokens have other numbers"
        )
    weights: checkpoint.Tensors = {}
    for name, tensor in _load(folder / "model.safetensors").items():
        short = name.removeprefix(PREFIX)
        if not short.endswith(MASKS):
            weights[short] = tensor.t().contiguous() if short.endswith(CONV1D) else tensor
    # A tied matrix may be stored under one of its names or under both.
    head = weights.pop("lm_head.weight", None)
    embedding = (
        weights.setdefault("wte.weight", head) if head is not None else weights.get("wte.weight")
    )
    if embedding is None or embedding.dim() != 2 or len(embedding) != rows:
        raise ValueError(
            f"{folder}: model.safetensors has no embedding of the {rows} rows in config.json"
        )
    if head is not None and not torch.equal(head, embedding):
        raise ValueError(
            f"{folder}: lm_head.weight differs from wte.weight (tie_word_embeddings is false); "
            "this trainer's GPT-2 has one matrix for both"
        )
    if any(not tensor.is_floating_point() for tensor in weights.values()):
        raise ValueError(f"{folder}: model.safetensors is quantized; use float weights")
    mean = embedding.float().mean(0, keepdim=True).to(embedding.dtype)
    weights["wte.weight"] = torch.cat((embedding, mean.expand(network.vocab_size - rows, -1)))
    return weights


def _load(path: Path) -> checkpoint.Tensors:
    if not path.exists():
        raise ValueError(f"{path.parent} has no {path.name}; give a folder with GPT-2's weights")
    refuse_other_formats(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        why = f"{path}: not a complete safetensors file: {error}; download it again"
        raise ValueError(why) from None


def _checkpoint_weights(
    path: Path, network: GPT, tokenizer: Tokenizer, say: Callable[[str], None]
) -> checkpoint.Tensors:
    """Return the weights of a run or a checkpoint folder; ValueError if they do not fit."""
    run = path.parent if STEP_FOLDER.match(path.name) else path
    try:
        newest = checkpoint.weights(path, say)
    except checkpoint.DamagedCheckpoint as damage:
        raise ValueError(
            f"{path} is damaged: {damage}; use another step of run {run.name}, or init_from={run} "
            "for the newest intact one"
        ) from None
    if newest is None:
        raise ValueError(
            f"{path} is not a run, not a checkpoint folder, and not a folder with Hugging Face's "
            "config.json and model.safetensors"
        )
    described = read_tokenizer(run)
    if not (run / "recipe.yaml").exists() or described is None:
        raise ValueError(
            f"{run} has no recipe.yaml or no tokenizer.json, so the weights' network is unknown; "
            "restore them from the run's folder"
        )
    if not same_tokens(described, tokenizer.to_meta()):
        raise ValueError(
            f"{run.name} learned tokenizer {described['name']} with other tokens than the "
            f"dataset's {tokenizer.name}; prepare the text with that tokenizer, or remove "
            "train.init_from"
        )
    if different := other_network(load(run / "recipe.yaml").model, network.config):
        listed = ", ".join(
            f"{key} is {old} there, {new} here" for key, (old, new) in different.items()
        )
        raise ValueError(f"run {run.name} does not fit the recipe's model: {listed}")
    return newest[0]
