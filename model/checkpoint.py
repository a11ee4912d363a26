"""Checkpoints: written atomically, verified when read, never able to run code.

<run>/step_00001000/model.safetensors       the network's weights
                    optimizer.safetensors   the optimizer's state
                    state.json              the loop's state: step, tokens, losses
                    manifest.json           size and SHA-256 of each of these files
<run>/latest                                the name of the newest complete folder
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from job.exit_status import UserError
from job.files import new_file
from job.metrics import Report
from job.step_folders import new_checkpoint, newest_intact, step_folder
from model.distributed import full_tensor, is_sharded, shard_like
from model.optim import Optimizer

Tensors = dict[str, Tensor]


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
    tensors = (*checkpoint.model.values(), *checkpoint.optimizer.values())
    size = sum(tensor.nbytes for tensor in tensors)
    with new_checkpoint(run, checkpoint.step, size) as folder:
        with new_file(folder / "model.safetensors") as path:
            save_file(checkpoint.model, path, metadata={"format": "pt"})
        with new_file(folder / "optimizer.safetensors") as path:
            save_file(checkpoint.optimizer, path)
        state = {"step": checkpoint.step, **checkpoint.state}
        (folder / "state.json").write_text(json.dumps(state, indent=2))
    return step_folder(run, checkpoint.step)


def read(folder: Path) -> Checkpoint:
    """Load an intact step folder onto the CPU."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return Checkpoint(
        step=state.pop("step"),
        model=load_file(folder / "model.safetensors"),
        optimizer=load_file(folder / "optimizer.safetensors"),
        state=state,
    )


def newest(run: Path, report: Report) -> Checkpoint | None:
    """Return the newest intact checkpoint, warning about damaged ones; None if none is intact."""
    folder = newest_intact(run, report)
    return None if folder is None else read(folder)


class CheckpointWriter:
    """Writes checkpoints in a thread, so that training waits only for the copy of the tensors.

    The next ``submit`` or ``wait`` raises an error of the thread. An interpreter that exits
    normally waits until the checkpoint is complete.
    """

    def __init__(self, run: Path, on_written: Callable[[int], None]) -> None:
        self.run = run
        self.on_written = on_written
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.work: Future[object] | None = None
        self.copies: Tensors = {}  # weights are named w, the optimizer's tensors w:entry

    def prepare(self, tensors: tuple[Tensors, Tensors]) -> None:
        """Pin the memory for the copies in the background.

        1.5 GB take about a second, which would delay the first checkpoint. Sharded tensors are
        left out: gathering them is an exchange between processes.
        """
        named = (tensors[0] | tensors[1]).items()
        own = [(name, t) for name, t in named if t.is_cuda and not is_sharded(t)]
        self.wait()  # a run with initial weights has submitted a checkpoint already
        self.work = self.thread.submit(lambda: [self._buffer(*each) for each in own])

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
        self.work = self.thread.submit(self._write, Checkpoint(step, model, optimizer, state))

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk."""
        work, self.work = self.work, None
        if work is not None:
            work.result()

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


def flatten_optimizer(
    optimizer: Optimizer | torch.optim.Optimizer, names: dict[Tensor, str]
) -> Tensors:
    """Return the optimizer's state as ``<parameter>:<entry>`` → tensor, flat for safetensors."""
    return {
        f"{names[parameter]}:{entry}": value if isinstance(value, Tensor) else torch.tensor(value)
        for parameter, entries in optimizer.state.items()
        for entry, value in entries.items()
    }


def restore_model(names: dict[Tensor, str], saved: Tensors) -> None:
    """Copy the saved weights into the parameters; each process takes its part.

    Raises UserError if their names or shapes differ.
    """
    own = {(name, parameter.shape) for parameter, name in names.items()}
    if different := own ^ {(name, tensor.shape) for name, tensor in saved.items()}:
        listed = sorted({name for name, _ in different})
        raise UserError(
            f"the checkpoint and the network differ in {', '.join(listed[:3])}: a different "
            "version of this code wrote it. Use that version, or start a new run with "
            "--name NEW-NAME"
        )
    with torch.no_grad():
        for parameter, name in names.items():
            parameter.copy_(shard_like(saved[name].to(parameter.device), parameter))


def restore_optimizer(
    optimizer: Optimizer | torch.optim.Optimizer, names: dict[Tensor, str], saved: Tensors
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


def _place(
    tensor: Tensor, parameter: Tensor, optimizer: Optimizer | torch.optim.Optimizer
) -> Tensor:
    if tensor.dim() == 0:
        # torch's fused AdamW has its step count on the parameter's device, the others on the CPU.
        return tensor.to(parameter.device) if optimizer.defaults.get("fused") else tensor
    tensor = tensor.to(parameter.device)
    return shard_like(tensor, parameter) if tensor.shape == parameter.shape else tensor
