"""Weights from outside: a trained run for sample, evaluate and export; initial weights for train.

corpus/initial_weights.py has the checks that need no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from corpus.initial_weights import (
    CONV1D,
    MASKS,
    PREFIX,
    checkpoint_folder,
    gpt2_rows,
    refuse_different_shapes,
    weights_path,
)
from corpus.tokenizers import Tokenizer, vocabulary
from corpus.verify import tokenizer_of_run
from job.arguments import report
from job.compatibility import refuse_changed_network
from job.exit_status import UserError
from job.metrics import Report
from job.paths import VolumePaths
from job.recipe import Recipe, load
from job.run_record import find_run, no_checkpoint_error, recorded_dataset
from job.step_folders import newest_intact, step_of
from model import device as devices
from model.checkpoint import Tensors, restore_model
from model.gpt import GPT


@dataclass(frozen=True)
class RunDescription:
    """A run as its readers need it, without weights; ``dataset`` is as the run recorded it."""

    folder: Path
    recipe: Recipe
    tokenizer: Tokenizer
    dataset: dict[str, Any]


def describe_run(name: str | None, overrides: list[str]) -> RunDescription:
    """Describe run ``name``, or the newest run; RecipeError if ``overrides`` change its network."""
    locations = VolumePaths.current()
    locations.set_defaults()
    folder = find_run(name, locations.checkpoints)
    recipe = load(folder / "recipe.yaml", overrides, section="sample")
    refuse_changed_network(folder.name, load(folder / "recipe.yaml"), recipe)
    recorded = recorded_dataset(folder)
    tokenizer = tokenizer_of_run(folder, recorded, locations.dataset(recipe.data.dataset))
    return RunDescription(folder, recipe, tokenizer, recorded)


@dataclass(frozen=True)
class TrainedRun(RunDescription):
    """A run with the network of its newest intact checkpoint."""

    network: GPT
    step: int


def open_run(name: str | None, overrides: list[str], device_kind: str | None) -> TrainedRun:
    """Load the newest intact checkpoint of run ``name``, or of the newest run, onto a device."""
    device = devices.pick_device(device_kind, 0)
    described = describe_run(name, overrides)
    folder = newest_intact(described.folder, report)
    if folder is None:
        raise no_checkpoint_error(described.folder)
    network = GPT(described.recipe.model, vocabulary(described.recipe, described.tokenizer))
    _restore(network, load_file(folder / "model.safetensors"))
    return TrainedRun(**vars(described), network=network.to(device), step=step_of(folder))


def load_initial_weights(
    network: GPT, tokenizer: Tokenizer, source: str, locations: VolumePaths, report: Report
) -> None:
    """Copy the weights of ``train.init_from`` into ``network``.

    ``source`` is a run, a checkpoint folder, or GPT-2 in a folder or on the Hugging Face Hub.
    """
    path = weights_path(source, locations)
    try:
        if (path / "config.json").exists():
            weights = read_gpt2(path, network, tokenizer)
        else:
            folder = checkpoint_folder(path, tokenizer, network.config, report)
            weights = load_file(folder / "model.safetensors")
    except ValueError as error:
        raise UserError(f"train.init_from: {error}") from None
    shapes = (
        {name: tuple(t.shape) for name, t in w.items()} for w in (network.state_dict(), weights)
    )
    refuse_different_shapes(source, *shapes)
    _restore(network, weights)
    report(f"initial weights: {path}")


def _restore(network: GPT, weights: Tensors) -> None:
    restore_model({p: name for name, p in network.named_parameters()}, weights)


def read_gpt2(folder: Path, network: GPT, tokenizer: Tokenizer) -> Tensors:
    """Return the weights of a Hugging Face folder under our names; ValueError if they do not fit.

    The vocabulary is padded with the mean of all rows, so a padding row's logit is the mean of all
    logits, and the 47 rows to 50,304 get less than 47 / 50,257 of the probability (Jensen): 0.0009
    of loss. Rows of zeros would get nearly all of it, because GPT-2's logits are about -40 to -100.
    """
    rows = gpt2_rows(folder, tokenizer, network.config, network.vocab_size)
    weights: Tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        short = name.removeprefix(PREFIX)
        if not short.endswith(MASKS):
            weights[short] = tensor.t().contiguous() if short.endswith(CONV1D) else tensor
    # A tied matrix may be stored under one of its names or under both.
    head = weights.pop("lm_head.weight", None)
    embedding = weights.get("wte.weight", head)
    assert embedding is not None  # checked with ``rows``
    if head is not None and not torch.equal(head, embedding):
        raise ValueError(
            f"{folder}: lm_head.weight differs from wte.weight (tie_word_embeddings is false); "
            "this trainer's GPT-2 has one matrix for both"
        )
    mean = embedding.float().mean(0, keepdim=True).to(embedding.dtype)
    weights["wte.weight"] = torch.cat((embedding, mean.expand(network.vocab_size - rows, -1)))
    return weights
