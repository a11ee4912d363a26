"""Checkpoints: written atomically, verified when read, never able to run code.

    <run>/step_00001000/model.safetensors       the network's weights
                        optimizer.safetensors   the optimizer's state
                        state.json              the loop's state: step, tokens, losses
                        manifest.json           size and SHA-256 of each of these files
    <run>/latest                                the name of the newest complete folder

A folder is filled under a temporary name, each file is fsynced, and the folder is renamed; `latest`
is updated last.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from job.disk import whole_or_gone
from job.exit_status import UserError
from job.files import fsync_file, fsync_folder, write_atomically, written
from job.step_folders import (
    MANIFEST,
    PARTIAL,
    STEP_FOLDER,
    discard,
    find_damage,
    point_latest,
    sha256,
    step_folder,
    steps,
)
from model.distributed import full_tensor, is_sharded, shard_like

Tensors = dict[str, Tensor]


class DamagedCheckpoint(UserError):
    """A checkpoint with missing, truncated or changed files; the text names the first."""


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a step folder, on the CPU."""

    step: int
    model: Tensors
    optimizer: Tensors
    state: dict[str, Any]


def write(run: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` into its folder of ``run`` and point ``latest`` to it.

    Raises DiskFull if the disk has too little space.
    """
    final = step_folder(run, checkpoint.step)
    temporary = run / f"{PARTIAL}{final.name}"
    tensors = (*checkpoint.model.values(), *checkpoint.optimizer.values())
    size = sum(tensor.nbytes for tensor in tensors)
    with whole_or_gone(run, checkpoint.step, temporary, size):
        with written(temporary / "model.safetensors") as path:
            save_file(checkpoint.model, path, metadata={"format": "pt"})
        with written(temporary / "optimizer.safetensors") as path:
            save_file(checkpoint.optimizer, path)
        state = {"step": checkpoint.step, **checkpoint.state}
        (temporary / "state.json").write_text(json.dumps(state, indent=2))
        manifest = {}
        for file in sorted(temporary.iterdir()):
            fsync_file(file)
            manifest[file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
        write_atomically(temporary / MANIFEST, json.dumps(manifest, indent=2))
    discard(final)  # a damaged one of the same step, which the resume skipped
    temporary.rename(final)
    fsync_folder(run)
    point_latest(run, checkpoint.step)
    return final


def verify(folder: Path) -> None:
    """Raise DamagedCheckpoint unless every file has the size and SHA-256 of the manifest."""
    if damage := find_damage(folder):
        raise DamagedCheckpoint(f"{folder.name}: {damage}")


def read(folder: Path) -> Checkpoint:
    """Verify one step folder and load it onto the CPU; raise DamagedCheckpoint if damaged."""
    verify(folder)
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return Checkpoint(
        step=state.pop("step"),
        model=load_file(folder / "model.safetensors"),
        optimizer=load_file(folder / "optimizer.safetensors"),
        state=state,
    )


def newest(run: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest intact checkpoint, warning about damaged ones; None if none is intact."""
    for step in reversed(steps(run)):
        try:
            return read(step_folder(run, step))
        except DamagedCheckpoint as damage:
            say(f"skipping a damaged checkpoint: {damage}; trying the previous one")
    return None


def weights(run_or_folder: Path, say: Callable[[str], None]) -> tuple[Tensors, int] | None:
    """Return weights and step of a step folder, or of a run's newest intact checkpoint."""
    is_folder = STEP_FOLDER.match(run_or_folder.name)
    checkpoint = read(run_or_folder) if is_folder else newest(run_or_folder, say)
    return None if checkpoint is None else (checkpoint.model, checkpoint.step)


class CheckpointWriter:
    """Writes checkpoints in a thread, so that training waits only for the copy of the tensors.

    The next ``submit`` or ``wait`` raises an error of the thread.
    """

    def __init__(self, run: Path, on_written: Callable[[int], None]) -> None:
        self.run = run
        self.on_written = on_written
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.copies: Tensors = {}  # weights are named w, the optimizer's tensors w:entry

    def prepare(self, tensors: tuple[Tensors, Tensors]) -> None:
        """Pin the memory for the copies in the background.

        1.5 GB take about a second, which would delay the first checkpoint. Sharded tensors are
        left out: gathering them is an exchange between processes.
        """
        named = (tensors[0] | tensors[1]).items()
        own = [
            (name, tensor) for name, tensor in named if tensor.is_cuda and not is_sharded(tensor)
        ]
        self.wait()  # a run with initial weights has submitted a checkpoint already
        self._start(lambda: [self._buffer(*each) for each in own])

    def submit(
        self, step: int, tensors: tuple[Tensors, Tensors], state: Any, write: bool = True
    ) -> None:
        """Copy the tensors to the CPU now and write them in the background.

        Every process that has a part of a tensor must call this; one of them with ``write``.
        """
        self.wait()
        model, optimizer = (
            {name: self._copy(name, t) if write else full_tensor(t) for name, t in group.items()}
            for group in tensors
        )
        if not write:
            return
        if any(tensor.is_cuda for tensor in tensors[0].values()):
            torch.cuda.synchronize()  # the copies are queued after the step
        checkpoint = Checkpoint(step, model, optimizer, state)
        self._start(lambda: self._write(checkpoint))

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        """Copy to the CPU, into the buffer of the previous checkpoint: pinning costs more."""
        tensor = full_tensor(tensor)
        buffer = self._buffer(name, tensor)
        return buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self.copies:
            self.copies[name] = torch.empty(
                tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda
            )
        return self.copies[name]

    def _write(self, checkpoint: Checkpoint) -> None:
        write(self.run, checkpoint)
        self.on_written(checkpoint.step)

    def _start(self, work: Callable[[], object]) -> None:
        def keep_error() -> None:
            try:
                work()
            except BaseException as error:
                self.error = error

        # Not a daemon: an interpreter that exits normally waits until the checkpoint is complete.
        self.thread = threading.Thread(target=keep_error, name="checkpoint")
        self.thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            error, self.error = self.error, None
            raise error


def flatten_optimizer(optimizer: torch.optim.Optimizer, names: dict[Tensor, str]) -> Tensors:
    """Return the optimizer's state as ``<parameter>:<entry>`` → tensor, flat for safetensors."""
    return {
        f"{names[parameter]}:{entry}": value if isinstance(value, Tensor) else torch.tensor(value)
        for parameter, entries in optimizer.state.items()
        for entry, value in entries.items()
    }


def restore_model(names: dict[Tensor, str], saved: Tensors) -> None:
    """Copy the saved weights into the parameters; each process takes its part."""
    if different := set(names.values()) ^ set(saved):
        raise UserError(
            f"the checkpoint and the network differ in {', '.join(sorted(different)[:3])}: another "
            "version of this code wrote it. Resume with that version, or start another run with "
            "--name NEW-NAME"
        )
    with torch.no_grad():
        for parameter, name in names.items():
            parameter.copy_(shard_like(saved[name].to(parameter.device), parameter))


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: dict[Tensor, str], saved: Tensors
) -> None:
    """Restore the state that ``flatten_optimizer`` returned, on each parameter's device."""
    by_parameter: dict[str, Tensors] = {}
    for key, tensor in saved.items():
        name, _, entry = key.rpartition(":")
        by_parameter.setdefault(name, {})[entry] = tensor
    own = {p for group in optimizer.param_groups for p in group["params"]}
    for parameter, name in names.items():
        if name in by_parameter and parameter in own:
            optimizer.state[parameter] = {
                entry: _place(tensor, parameter, optimizer)
                for entry, tensor in by_parameter[name].items()
            }


def _place(tensor: Tensor, parameter: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    if tensor.dim() == 0:
        # torch's fused AdamW has its step count on the parameter's device, the others on the CPU.
        return tensor.to(parameter.device) if optimizer.defaults.get("fused") else tensor
    tensor = tensor.to(parameter.device)
    return shard_like(tensor, parameter) if tensor.shape == parameter.shape else tensor
