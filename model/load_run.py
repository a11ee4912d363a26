"""Load trained weights: a run to use, or first weights to start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus.tokenizers import TOKENIZER, Tokenizer, read_tokenizer, same_tokens, vocabulary
from corpus.verify import tokenizer_of_run
from job.arguments import say
from job.exit_status import UserError
from job.paths import VolumePaths
from job.pretrained import pretrained
from job.recipe import Recipe, load
from job.run_record import find_run, read_record, without_checkpoint
from model import checkpoint
from model import device as devices
from model.gpt import GPT
from model.hugging_face import read_weights


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
    source: str,
    locations: VolumePaths,
    say: Callable[[str], None],
    tokenizer: dict[str, Any] | None = None,
) -> None:
    """Copy the weights of ``train.init_from`` into ``network``.

    ``source`` is a run, a checkpoint folder, or GPT-2 in a folder or on the Hugging Face Hub. A run
    must have learned the tokens of ``tokenizer``, the description in the dataset's meta.
    """
    path = Path(source) if Path(source).exists() else locations.run(source)
    if hub := pretrained(source):
        path = locations.cache / hub.folder
    if (path / "config.json").exists():
        weights = read_weights(path, network.vocab_size)
    else:
        weights = _checkpoint_weights(path, source, locations, say)
        run = path if (path / TOKENIZER).exists() else path.parent
        described = read_tokenizer(run)
        if tokenizer and described and not same_tokens(described, tokenizer):
            raise UserError(
                f"train.init_from: {source} learned tokenizer {described['name']} with other tokens "
                f"than the dataset's {tokenizer['name']}; prepare the text with that tokenizer, or "
                "remove train.init_from"
            )
    own = network.state_dict()
    for name in own.keys() | weights.keys():
        expected, given = (
            tuple(side[name].shape) if name in side else "missing" for side in (own, weights)
        )
        if expected != given:
            raise UserError(
                f"train.init_from: {source} does not fit the recipe's model: {name} is {given}, "
                f"the recipe's is {expected}; use its n_layer, n_head, n_embd, block_size, bias "
                f"and variant"
            )
    checkpoint.restore_model({p: name for name, p in network.named_parameters()}, weights)
    say(f"initial weights: {path}")


def _checkpoint_weights(
    path: Path, source: str, locations: VolumePaths, say: Callable[[str], None]
) -> checkpoint.Tensors:
    try:
        newest = checkpoint.weights(path, say)
    except checkpoint.DamagedCheckpoint as damage:
        raise UserError(
            f"train.init_from: {source} is damaged: {damage}; use another step of run "
            f"{path.parent.name}, or init_from={path.parent} for the newest intact one"
        ) from damage
    if newest is None:
        raise UserError(
            f"train.init_from: {source} is not a run in {locations.checkpoints}, not a checkpoint "
            f"folder, and not a folder with Hugging Face's config.json and model.safetensors"
        )
    return newest[0]
