"""A trained run, ready to use: its network, tokenizer and recipe."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from corpus.run_tokenizer import run_tokenizer, vocabulary
from corpus.tokenizers import Tokenizer
from job.command_line import argument_parser, parse, say
from job.locations import Locations
from job.recipe import Recipe, load
from job.runs import NoSuchRun, find_run
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


def parse_run(
    command: str, description: str, argv: Sequence[str] | None, into: bool = False, choices: bool = False
) -> Namespace:
    """The arguments of a command that reads a run: --name, --device, overrides; no recipe of its own."""
    parser = argument_parser(f"model.{command}", description)
    parser.add_argument("--name", metavar="RUN", help="the run; the newest by default")
    parser.add_argument("--device", choices=devices.KINDS, help="the best one there by default")
    if into:
        parser.add_argument("--into", metavar="DIR", help="the run's folder hugging_face/ by default")
    if choices:
        parser.add_argument(
            "--choices", metavar="FILE", help="questions of multiple choice, a JSON line each"
        )
    return parse(parser, argv)


def open_run(name: str | None, overrides: list[str], device_kind: str | None) -> TrainedRun:
    """Load the newest sound checkpoint of run ``name``, or of the newest run, onto a device."""
    locations = Locations.current()
    locations.set_defaults()
    device = devices.pick_device(device_kind, 0)
    folder = find_run(name, locations.checkpoints)
    recipe = load(folder / "recipe.yaml", overrides)
    tokenizer = run_tokenizer(folder, locations.dataset(recipe.data.dataset))
    found = checkpoint.weights(folder, say)
    if found is None:
        raise NoSuchRun(
            f"run {folder.name} has no checkpoint yet; it writes one every checkpoint_every steps"
        )
    weights, step = found
    network = GPT(recipe.model, vocabulary(recipe, tokenizer))
    network.load_state_dict(weights)
    return TrainedRun(folder, recipe, network.to(device), tokenizer, step)
