"""First weights that come from elsewhere: another run, a checkpoint, GPT-2 in a folder or from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from job.exit_status import UserError
from job.locations import Locations
from job.published import published
from model import checkpoint
from model.gpt import GPT
from model.hugging_face import read_weights


def initialise(network: GPT, source: str, locations: Locations, say: Callable[[str], None]) -> None:
    """Put the weights of ``source`` into ``network``; UserError where they are not there or do not fit."""
    path = Path(source) if Path(source).exists() else locations.run(source)
    if hub := published(source):
        path = locations.cache / hub.folder
    if (path / "config.json").exists():
        weights = read_weights(path, network.vocab_size)
    else:
        try:
            found = checkpoint.weights(path, say)
        except checkpoint.DamagedCheckpoint as damage:
            raise UserError(
                f"train.init_from: {source} is damaged: {damage}; give another step of run {path.parent.name}, "
                f"or init_from={path.parent} for the newest sound one"
            ) from damage
        if found is None:
            raise UserError(
                f"train.init_from: {source} is no run in {locations.checkpoints}, no checkpoint folder and no "
                f"folder with Hugging Face's config.json and model.safetensors"
            )
        weights = found[0]
    mine = network.state_dict()
    for name in mine.keys() | weights.keys():
        shapes = [tuple(side[name].shape) if name in side else "missing" for side in (weights, mine)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"train.init_from: {source} does not fit the recipe's model: {name} is {shapes[0]} there "
                f"and {shapes[1]} here; take its n_layer, n_head, n_embd, block_size, bias and variant"
            )
    checkpoint.restore_model({p: name for name, p in network.named_parameters()}, weights)
    say(f"first weights: {path}")
