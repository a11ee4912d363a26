"""A trained run, ready to use: its network, tokenizer and recipe."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from corpus.run_tokenizer import run_tokenizer, vocabulary
from corpus.tokenizers import Tokenizer
from job.command_line import argument_parser, parse, say
from job.exit_status import ExitStatus, UserError
from job.locations import Locations
from job.recipe import Recipe, load
from job.runs import all_runs
from model import checkpoint
from model import device as devices
from model.gpt import GPT


class NoSuchRun(UserError):
    """The run is not there or has no checkpoint; the text says what to type."""

    status = ExitStatus.NOT_FOUND


@dataclass(frozen=True)
class TrainedRun:
    """What ``open_run`` gives."""

    folder: Path
    recipe: Recipe
    network: GPT
    tokenizer: Tokenizer
    step: int


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
    folder = find_run(name, locations)
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
