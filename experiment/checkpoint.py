"""Checkpoints of an experiment: atomic, verified, unable to run code, tied to a configuration.

The format is the trainer's (model/checkpoint.py):

    <run>/step_00001000/     model.safetensors, optimizer.safetensors, state.json, manifest.json
    <run>/latest

Under the runner ``output_dir`` is the run's folder. When the file is run by itself, checkpoints go
into a folder below it with the experiment's name, so that two experiments do not mix.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiment import logger
from job.arguments import report
from job.exit_status import ExitStatus, UserError
from job.step_folders import prune, step_folder, steps
from model import checkpoint as files

RANDOM = "#random"  # a prefix that no parameter's name has
NON_FINITE = "#float"  # marks an encoded NaN or infinity, which JSON lacks
MISSING = object()
COMPILED = "_orig_mod"  # in the names of torch.compile
SHOWN_DIFFERENCES = 5


class ConfigMismatch(UserError):
    """The checkpoint has a different configuration; the text shows the differences."""

    status = ExitStatus.JOB_FAILED


class ModelMismatch(UserError):
    """The checkpoint's weights or optimizer state belong to a different network or optimizer."""

    status = ExitStatus.JOB_FAILED


@dataclass(frozen=True)
class LoadedCheckpoint:
    """The step of the checkpoint, and the ``state`` that was saved with it."""

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
    """Write the checkpoint of ``step`` and delete all but the ``keep_last`` newest.

    ``config`` is a dict, dataclass or pydantic model with everything that distinguishes this
    experiment from others. ``state`` is what else the loop needs, as JSON can hold it. The random
    state of torch, Python and numpy is saved too. Returns the checkpoint's folder.

    Raises ConfigMismatch if the folder holds checkpoints of a different ``config``.
    """
    step = int(step)
    if step < 0:
        raise ValueError(f"step must be 0 or more, got {step}")
    folder = checkpoint_folder(output_dir, name)
    encoded = encode(config)
    _check_folder(folder, encoded)
    weights, tied = collect_weights(model) if model is not None else ({}, {})
    tensors: dict[str, Tensor] = dict(_random_state())
    groups: list[dict[str, Any]] = []
    if optimizer is not None:
        tensors |= files.flatten_optimizer(optimizer, _parameter_names(model, optimizer))
        groups = [_group_settings(group) for group in optimizer.param_groups]
    saved = {
        "experiment": name or _script_name(),
        "config": encoded,
        "state": encode(state or {}),
        "losses": logger.recorded_losses(),
        "tied": tied,
        "optimizer": type(optimizer).__name__ if optimizer is not None else None,
        "groups": encode(groups),
        "python_random": encode(random.getstate()),
        "numpy_random": _numpy_random_state(),
    }
    tensors = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    logger.sync_loggers(Path(output_dir))
    written = files.write(folder, files.Checkpoint(step, weights, tensors, saved))
    prune(folder, max(1, keep_last), set())
    logger.update_record(step=step)
    return written


def load_checkpoint(
    output_dir: str | Path,
    *,
    config: object,
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    name: str | None = None,
) -> LoadedCheckpoint | None:
    """Load the newest intact checkpoint into ``model`` and ``optimizer``, with the random state.

    Returns None without a checkpoint: start at step 0. Warns about damaged checkpoints and
    skips them. Call it before or after torch.compile.

    Raises ConfigMismatch if the checkpoint was written under a different ``config``.
    """
    folder = checkpoint_folder(output_dir, name)
    checkpoint = files.newest(folder, report)
    if checkpoint is None:
        return None
    saved = checkpoint.state
    _check_config(folder, saved, encode(config))
    if optimizer is not None:
        _check_optimizer(optimizer, saved)
    if model is not None:
        load_weights(model, checkpoint.model, saved["tied"])
    if optimizer is not None:
        names = _parameter_names(model, optimizer)
        files.restore_optimizer(optimizer, names, checkpoint.optimizer)
        for group, settings in zip(optimizer.param_groups, decode(saved["groups"]), strict=True):
            group.update(settings)
    _restore_random_state(checkpoint.optimizer, saved)
    # The next attempt may have no step left to log: a killed run must end with the same record.
    logger.update_record(step=checkpoint.step, **saved["losses"])
    report(f"resumed from the checkpoint of step {checkpoint.step}")
    return LoadedCheckpoint(checkpoint.step, decode(saved["state"]))


def checkpoint_folder(output_dir: str | Path, name: str | None = None) -> Path:
    """Return the run's folder, or outside the runner the experiment's folder in ``output_dir``."""
    folder = Path(output_dir)
    if name is None and (folder / "run.json").exists():
        return folder
    return folder / (name or _script_name())


def encode(value: object) -> Any:
    """Return ``value`` as valid JSON can hold it; ``decode`` restores NaN and infinity.

    Raises TypeError for a value that could not be compared or restored later.
    """
    if isinstance(value, Enum):
        return encode(value.value)
    if isinstance(value, float) and not math.isfinite(value):
        return {NON_FINITE: str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): encode(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [encode(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return encode(asdict(value))
    if hasattr(value, "model_dump"):
        return encode(value.model_dump(mode="json"))
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # of torch and numpy
        return encode(value.item())
    # A namespace. A function or a network has attributes too, which do not tell it from another.
    if not callable(value) and getattr(value, "__dict__", None):
        return encode(vars(value))
    raise TypeError(
        "config and state hold numbers, strings, lists and dicts, "
        f"got a {type(value).__name__}: {value!r}"
    )


def decode(value: Any) -> Any:
    """Return the value that ``encode`` encoded, with lists for tuples and dicts for objects."""
    if isinstance(value, dict):
        if value.keys() == {NON_FINITE}:
            return float(value[NON_FINITE])
        return {key: decode(part) for key, part in value.items()}
    return [decode(part) for part in value] if isinstance(value, list) else value


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside torch.compile and DistributedDataParallel."""
    while True:
        inner = model._modules.get(COMPILED)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def original_name(name: str) -> str:
    """Return a parameter's name without the parts that torch.compile inserts."""
    return name.replace(f"{COMPILED}.", "")


def collect_weights(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by name, and for each tied name the name that holds its tensor.

    safetensors refuses to store the same memory twice.
    """
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    names: dict[tuple[object, ...], str] = {}
    for wrapped_name, tensor in unwrap(model).state_dict().items():
        name = original_name(wrapped_name)
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and memory in names:
            tied[name] = names[memory]
            continue
        names[memory] = name
        # Two views of one memory are refused too: copy a tensor that does not fill its storage.
        is_view = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
        tensors[name] = (tensor.clone() if is_view else tensor).contiguous()
    return tensors, tied


def load_weights(model: nn.Module, saved: Mapping[str, Tensor], tied: Mapping[str, str]) -> None:
    """Copy the saved weights into ``model``, compiled or not.

    Raises ModelMismatch if a name or a shape differs; ``model`` is then unchanged.
    """
    weights = {original_name(name): tensor for name, tensor in saved.items()}
    weights |= {name: weights[other] for name, other in tied.items()}
    network = unwrap(model)
    state = network.state_dict()
    names = {original_name(name): name for name in state}
    errors = [f"{name} is missing" for name in names if name not in weights]
    errors += [f"{name} is not in this network" for name in weights if name not in names]
    errors += [
        f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(state[own].shape)}"
        for name, own in names.items()
        if name in weights and weights[name].shape != state[own].shape
    ]
    if errors:
        hidden = len(errors) - SHOWN_DIFFERENCES
        raise ModelMismatch(
            "the checkpoint belongs to a different network:\n  "
            + "\n  ".join(errors[:SHOWN_DIFFERENCES])
            + (f"\n  and {hidden} more" if hidden > 0 else "")
            + "\nput everything that shapes the network into config=, and use a different --name"
        )
    network.load_state_dict({own: weights[name] for name, own in names.items()})


def _script_name() -> str:
    return Path(sys.argv[0]).stem or "experiment"


def _check_folder(folder: Path, config: Any) -> None:
    """Raise ConfigMismatch if ``folder``'s oldest readable checkpoint has a different config."""
    for step in steps(folder):
        try:
            saved = json.loads((step_folder(folder, step) / "state.json").read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(saved, dict):
            _check_config(folder, saved, config)
            return


def _check_config(folder: Path, saved: Mapping[str, Any], config: Any) -> None:
    if "config" not in saved:
        raise UserError(
            f"{folder} holds checkpoints that the trainer wrote; choose a different run with --name"
        )
    lines = _differences(decode(saved["config"]), decode(config))
    if lines:
        raise ConfigMismatch(
            f"{folder} holds checkpoints of a different configuration:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nstart a new run with --name NEW-NAME, or restore the configuration"
        )


def _differences(before: Any, after: Any, key: str = "") -> list[str]:
    """Return ``lr: 0.1 → 0.2`` for each value that differs, with the full key of a nested one."""
    if isinstance(before, dict) and isinstance(after, dict):
        prefix = f"{key}." if key else ""
        return [
            line
            for name in {**before, **after}
            for line in _differences(
                before.get(name, MISSING), after.get(name, MISSING), prefix + name
            )
        ]
    if before == after or repr(before) == repr(after):  # NaN does not equal itself
        return []
    shown = ("(not set)" if value is MISSING else repr(value) for value in (before, after))
    return [f"{key or 'config'}: {' → '.join(shown)}"]


def _check_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Raise ModelMismatch unless the checkpoint has the state of an optimizer like this one."""
    own, kind = type(optimizer).__name__, saved.get("optimizer")
    if kind != own:
        raise ModelMismatch(
            f"the checkpoint holds the state of {kind or 'no optimizer'}, expected {own}\n"
            "put the choice of the optimizer into config=, and use a different --name"
        )
    if len(saved["groups"]) != len(optimizer.param_groups):
        raise ModelMismatch(
            f"the checkpoint's optimizer has {len(saved['groups'])} parameter groups, "
            f"expected {len(optimizer.param_groups)}\n"
            "put what divides the parameters into config=, and use a different --name"
        )


def _parameter_names(
    model: nn.Module | None, optimizer: torch.optim.Optimizer
) -> dict[Tensor, str]:
    """Name each of the optimizer's parameters as the model does, or else by its position."""
    named = unwrap(model).named_parameters() if model is not None else ()
    in_model = {parameter: original_name(name) for name, parameter in named}
    return {
        parameter: in_model.get(parameter) or f"group{number}.{position}"
        for number, group in enumerate(optimizer.param_groups)
        for position, parameter in enumerate(group["params"])
    }


def _group_settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a scheduler may have changed, such as the learning rate."""
    settings = {}
    for key, value in group.items():
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if key != "params" and isinstance(value, bool | int | float | list | tuple):
            settings[key] = value
    return settings


def _random_state() -> dict[str, Tensor]:
    states = {f"{RANDOM}:cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"{RANDOM}:cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _numpy_random_state() -> Any:
    """Return the state of numpy's global generator; None if numpy.random is not imported."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is None:
        return None
    name, keys, *rest = numpy_random.get_state()
    return [name, keys.tolist(), *rest]


def _restore_random_state(tensors: Mapping[str, Tensor], saved: Mapping[str, Any]) -> None:
    torch.set_rng_state(tensors[f"{RANDOM}:cpu"])
    for number in range(torch.cuda.device_count()):
        if f"{RANDOM}:cuda{number}" in tensors:
            torch.cuda.set_rng_state(tensors[f"{RANDOM}:cuda{number}"], number)
    version, internal, gauss = saved["python_random"]
    random.setstate((version, tuple(internal), gauss))
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None and saved["numpy_random"] is not None:
        numpy_random.set_state(saved["numpy_random"])
