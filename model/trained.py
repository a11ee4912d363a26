"""A trained run, ready to use: its network, tokenizer and recipe."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from model import checkpoint
from model.data.prepare import dataset_meta
from model.data.tokenizers import Tokenizer, padded_vocab_size
from model.gpt import GPT
from model.locations import Locations
from model.recipe import Recipe, RecipeError, load
from model.runs import all_runs


class NoSuchRun(Exception):
    """The run is not there or has no checkpoint; the text says what to type."""


@dataclass(frozen=True)
class TrainedRun:
    """What ``open_run`` gives."""

    folder: Path
    recipe: Recipe
    network: GPT
    tokenizer: Tokenizer
    step: int


def say(text: str) -> None:
    """Talk, to stderr."""
    print(text, file=sys.stderr, flush=True)


def find_run(name: str | None, locations: Locations) -> Path:
    """The folder of run ``name``, or of the newest run; NoSuchRun with the names there are."""
    names = [folder.name for folder, _ in all_runs(locations.checkpoints)]
    if name is None:
        if not names:
            raise NoSuchRun(f"no run in {locations.checkpoints} yet; train one first: runner host train")
        return locations.run(names[0])
    if not (locations.run(name) / "recipe.yaml").exists():
        there = f"; there are: {', '.join(names[:10])}" if names else "; there is none yet"
        raise NoSuchRun(f"no run {name} in {locations.checkpoints}{there}")
    return locations.run(name)


def open_run(
    name: str | None, overrides: list[str], locations: Locations, device: torch.device
) -> TrainedRun:
    """Load the newest sound checkpoint of a run, with overrides of its recipe's free keys."""
    folder = find_run(name, locations)
    recipe = load(folder / "recipe.yaml", overrides)
    meta = dataset_meta(locations.dataset(recipe.data.dataset))
    if meta is None:
        raise NoSuchRun(
            f"the dataset {recipe.data.dataset} of run {folder.name} is not in {locations.data}: "
            f"its tokenizer is needed; make it with: runner host prepare"
        )
    tokenizer = meta.load_tokenizer()
    found = checkpoint.weights(folder, say)
    if found is None:
        raise NoSuchRun(
            f"run {folder.name} has no checkpoint yet; it writes one every checkpoint_every steps"
        )
    weights, step = found
    network = GPT(recipe.model, vocabulary(recipe, tokenizer))
    network.load_state_dict(weights)
    return TrainedRun(folder, recipe, network.to(device), tokenizer, step)


def vocabulary(recipe: Recipe, tokenizer: Tokenizer) -> int:
    """Rows of the network's vocabulary: the recipe's, else the tokenizer's padded to a multiple of 64."""
    rows = recipe.model.vocab_size
    if rows is None:
        return padded_vocab_size(tokenizer)
    if rows < tokenizer.vocab_size:
        raise recipe.mistake(
            "model.vocab_size",
            f"vocab_size ({rows}) is below the tokenizer's {tokenizer.vocab_size} ({tokenizer.name})",
        )
    return rows


__all__ = ["NoSuchRun", "RecipeError", "TrainedRun", "find_run", "open_run", "say", "vocabulary"]
