"""Checkpoints of an experiment, in the form of the trainer's (model/checkpoint.py): whole or not at all, verified,
unable to run code. Each holds the configuration that it was written under, and is given to no other.

    <run>/step_00001000/     model.safetensors, optimizer.safetensors, state.json, manifest.json
    <run>/latest

``output_dir`` is the run's folder where the runner calls. Elsewhere, when the file is started by itself, they go
into a folder of the experiment's name below it, so that two experiments in one place do not mix.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiment import current
from experiment.configuration import OtherConfiguration, as_plain, differences
from experiment.weights import load_weights, plain_module, weights_of
from job.command_line import say
from job.exit_status import UserError
from job.step_folders import prune, step_folder, steps
from model import checkpoint as files

__all__ = ["Loaded", "OtherConfiguration", "load_checkpoint", "save_checkpoint"]

RANDOM = "#random"  # no parameter has such a name


@dataclass(frozen=True)
class Loaded:
    """What ``load_checkpoint`` found: the step that was done, and what was saved as ``state``."""

    step: int
    state: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    output_dir: str | Path,
    step: int,
    *,
    config: object,
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    state: Mapping[str, Any] | None = None,
    name: str | None = None,
    keep_last: int = 2,
) -> Path:
    """Write the checkpoint of ``step``, with the random state of torch, Python and numpy; its folder.

    ``config`` (a dict, dataclass or pydantic model) is all that makes this another experiment than others.
    ``state`` is what else the loop needs, as JSON can hold it. Only the ``keep_last`` newest stay. Raises
    OtherConfiguration where the folder holds checkpoints of another ``config``.
    """
    folder = checkpoint_folder(output_dir, name)
    configuration = as_plain(config)
    _refuse_others(folder, configuration)
    weights, tied = weights_of(model) if model is not None else ({}, {})
    training: dict[str, Tensor] = dict(_random_state())
    groups: list[dict[str, Any]] = []
    if optimizer is not None:
        training |= files.flatten_optimizer(optimizer, _names(model, optimizer))
        groups = [_plain_group(group) for group in optimizer.param_groups]
    kept = {
        "experiment": name or _own_name(),
        "config": configuration,
        "state": as_plain(state or {}),
        "tied": tied,
        "groups": groups,
        "python_random": as_plain(random.getstate()),
        "numpy_random": _numpy_random(),
    }
    training = {key: tensor.detach().contiguous() for key, tensor in training.items()}
    written = files.write(folder, files.Checkpoint(step, weights, training, kept))
    prune(folder, max(1, keep_last), set())
    current.note(step=step)
    return written


def load_checkpoint(
    output_dir: str | Path,
    *,
    config: object,
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    name: str | None = None,
) -> Loaded | None:
    """Put the newest sound checkpoint into ``model`` and ``optimizer``, and set the random state; None: there is
    none, begin at step 0. A damaged one is passed over aloud. Call it before or after torch.compile.

    Raises OtherConfiguration, with the differences, where it was written under another ``config``.
    """
    folder = checkpoint_folder(output_dir, name)
    found = files.newest(folder, say)
    if found is None:
        return None
    kept = found.state
    if "config" not in kept:
        raise UserError(f"{folder} holds checkpoints of a run of a recipe; choose another name with --name")
    _refuse(folder, kept, as_plain(config))
    if model is not None:
        load_weights(model, found.model, kept["tied"])
    if optimizer is not None:
        files.restore_optimizer(optimizer, _names(model, optimizer), found.optimizer)
        for group, saved in zip(optimizer.param_groups, kept["groups"], strict=False):
            group.update(saved)
    _set_random_state(found.optimizer, kept)
    current.note(step=found.step)
    say(f"goes on from the checkpoint of step {found.step}")
    return Loaded(found.step, kept["state"])


def checkpoint_folder(output_dir: str | Path, name: str | None = None) -> Path:
    """Where the checkpoints are: the run's folder itself, else one of the experiment's name below it."""
    folder = Path(output_dir)
    if name is None and (folder / "run.json").exists():
        return folder
    return folder / (name or _own_name())


def _own_name() -> str:
    return Path(sys.argv[0]).stem or "experiment"


def _refuse_others(folder: Path, configuration: Mapping[str, Any]) -> None:
    for step in steps(folder):
        try:
            kept = json.loads((step_folder(folder, step) / "state.json").read_text())
        except (OSError, ValueError):
            continue
        if "config" in kept:
            _refuse(folder, kept, configuration)
        return


def _refuse(folder: Path, kept: Mapping[str, Any], configuration: Mapping[str, Any]) -> None:
    lines = differences(kept["config"], configuration)
    if lines:
        raise OtherConfiguration(
            f"{folder} holds checkpoints of another configuration:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nstart another run with --name NEW-NAME, or give the configuration that they were written under"
        )


def _names(model: nn.Module | None, optimizer: torch.optim.Optimizer) -> dict[Tensor, str]:
    """A name for each parameter of the optimizer: the model's own, else its place."""
    by_model = {p: n for n, p in plain_module(model).named_parameters()} if model is not None else {}
    names: dict[Tensor, str] = {}
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            given = by_model.get(parameter)
            names[parameter] = given.replace("_orig_mod.", "") if given else f"group{number}.{place}"
    return names


def _plain_group(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a scheduler may have changed: the learning rate and its like."""
    found = {}
    for key, value in group.items():
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if key != "params" and isinstance(value, bool | int | float | list | tuple):
            found[key] = value
    return found


def _random_state() -> dict[str, Tensor]:
    states = {f"{RANDOM}:cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"{RANDOM}:cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _numpy_random() -> Any:
    """Of numpy's global generator; None where nothing has imported numpy.random."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is None:
        return None
    name, keys, *rest = numpy_random.get_state()
    return [name, keys.tolist(), *rest]


def _set_random_state(saved: Mapping[str, Tensor], kept: Mapping[str, Any]) -> None:
    torch.set_rng_state(saved[f"{RANDOM}:cpu"])
    for number in range(torch.cuda.device_count()):
        if f"{RANDOM}:cuda{number}" in saved:
            torch.cuda.set_rng_state(saved[f"{RANDOM}:cuda{number}"], number)
    version, internal, gauss = kept["python_random"]
    random.setstate((version, tuple(internal), gauss))
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None and kept["numpy_random"] is not None:
        numpy_random.set_state(kept["numpy_random"])
