"""A trained run, ready to use: its network, tokenizer and recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from corpus.run_tokenizer import run_tokenizer, vocabulary
from corpus.tokenizers import Tokenizer
from job.command_line import say
from job.locations import Locations
from job.recipe import Recipe, load
from job.runs import find_run, without_checkpoint
from model import checkpoint
from model import device as devices
from model.gpt import GPT


@dataclass(frozen=True)
class TrainedRun:
    """What ``open_run`` gives."""

    folder: Path
    recipe: Recipe
    network: GPT
    tokenizer: Tokenizer
    step: int


def open_run(name: str | None, overrides: list[str], device_kind: str | None) -> TrainedRun:
    """Load the newest sound checkpoint of run ``name``, or of the newest run, onto a device."""
    locations = Locations.current()
    locations.set_defaults()
    device = devices.pick_device(device_kind, 0)
    folder = find_run(name, locations.checkpoints)
    recipe = load(folder / "recipe.yaml", overrides, section="sample")
    tokenizer = run_tokenizer(folder, locations.dataset(recipe.data.dataset))
    found = checkpoint.weights(folder, say)
    if found is None:
        raise without_checkpoint(folder)
    weights, step = found
    network = GPT(recipe.model, vocabulary(recipe, tokenizer))
    network.load_state_dict(weights)
    return TrainedRun(folder, recipe, network.to(device), tokenizer, step)
