"""Checkpoints: written whole or not at all, verified when read, never able to run code.

    <run>/step_00001000/model.safetensors       the network's weights
                        optimizer.safetensors   the optimizer's state
                        state.json              step, tokens, losses, seed: what the loop needs
                        manifest.json           bytes and SHA-256 of each of them
    <run>/latest                                the name of the newest complete one

A folder is filled under a temporary name, each file fsynced, then renamed; `latest` is moved last.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from job.disk import whole_or_gone
from job.exit_status import UserError
from job.files import fsync_file, fsync_folder, write_atomically, written
from job.step_folders import MANIFEST, PARTIAL, STEP_FOLDER, point_latest, sha256, step_folder, steps
from model.parallel import is_part, part_like, whole

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


class DamagedCheckpoint(UserError):
    """A checkpoint whose files are missing, cut short or changed; the text says which."""


@dataclass(frozen=True)
class Checkpoint:
    """What a step folder holds, on the CPU."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def write(run: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` into its folder of ``run`` and move ``latest`` to it. DiskFull where there is no room."""
    final = step_folder(run, checkpoint.step)
    temporary = run / f"{PARTIAL}{final.name}"
    tensors = (*checkpoint.model.values(), *checkpoint.optimizer.values())
    with whole_or_gone(run, checkpoint.step, temporary, sum(tensor.nbytes for tensor in tensors)):
        with written(temporary / "model.safetensors") as path:
            save_file(checkpoint.model, path, metadata={"format": "pt"})
        with written(temporary / "optimizer.safetensors") as path:
            save_file(checkpoint.optimizer, path)
        (temporary / "state.json").write_text(
            json.dumps({"step": checkpoint.step, **checkpoint.state}, indent=2)
        )
        manifest = {}
        for file in sorted(temporary.iterdir()):
            fsync_file(file)
            manifest[file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
        write_atomically(temporary / MANIFEST, json.dumps(manifest, indent=2))
    if final.exists():  # a damaged one of the same step, which the resume passed over
        shutil.rmtree(final)
    temporary.rename(final)
    fsync_folder(run)
    point_latest(run, checkpoint.step)
    return final


def verify(folder: Path) -> None:
    """Raise DamagedCheckpoint unless every file is there, whole and unchanged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        expected = {name: (manifest[name]["bytes"], manifest[name]["sha256"]) for name in FILES}
    except (OSError, ValueError, LookupError, TypeError):
        raise DamagedCheckpoint(f"{folder.name}: manifest.json is missing or unreadable") from None
    for name, (size, digest) in expected.items():
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpoint(f"{folder.name}: {name} is missing")
        if path.stat().st_size != size:
            raise DamagedCheckpoint(f"{folder.name}: {name} has {path.stat().st_size} bytes, not {size}")
        if sha256(path) != digest:
            raise DamagedCheckpoint(f"{folder.name}: {name} has changed since it was written (SHA-256)")


def read(folder: Path) -> Checkpoint:
    """Verify and load one step folder onto the CPU; DamagedCheckpoint if it is not sound."""
    verify(folder)
    state = json.loads((folder / "state.json").read_text())
    return Checkpoint(
        step=state.pop("step"),
        model=load_file(folder / "model.safetensors"),
        optimizer=load_file(folder / "optimizer.safetensors"),
        state=state,
    )


def newest(run: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest sound checkpoint of ``run``; each damaged one is passed over aloud. None: there is none."""
    for step in reversed(steps(run)):
        try:
            return read(step_folder(run, step))
        except DamagedCheckpoint as damage:
            say(f"damaged checkpoint passed over: {damage}; going back to the one before")
    return None


def weights(run_or_folder: Path, say: Callable[[str], None]) -> tuple[dict[str, Tensor], int] | None:
    """Weights and step of a step folder, or of a run's newest sound checkpoint."""
    found = read(run_or_folder) if STEP_FOLDER.match(run_or_folder.name) else newest(run_or_folder, say)
    return None if found is None else (found.model, found.step)


class BackgroundWriter:
    """Writes checkpoints in a thread: training waits for the copy of the tensors alone.

    An error of the thread is raised at the next ``submit`` or ``wait``.
    """

    def __init__(self, run: Path, on_written: Callable[[int], None]) -> None:
        self.run = run
        self.on_written = on_written
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.copies: dict[str, Tensor] = {}  # weights are named w, the optimizer's tensors w:entry

    def prepare(self, tensors: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
        """Pin the memory of the copies in the background: 1.5 GB take about a second, for which the first checkpoint
        would hold up the training. Not of what the processes share: to make it whole is an exchange."""
        named = (tensors[0] | tensors[1]).items()
        mine = [(name, tensor) for name, tensor in named if tensor.is_cuda and not is_part(tensor)]
        self.wait()  # a run with first weights has written a checkpoint by then
        self._begin(lambda: [self._memory(*each) for each in mine])

    def submit(
        self, step: int, tensors: tuple[dict[str, Tensor], dict[str, Tensor]], state: Any, write: bool = True
    ) -> None:
        """Copy the tensors to the CPU now and write them in the background. Every process that holds a part of
        a tensor must call; one of them with ``write``."""
        self.wait()
        model, optimizer = (
            {name: self._copy(name, t) if write else whole(t) for name, t in group.items()}
            for group in tensors
        )
        if not write:
            return
        if any(tensor.is_cuda for tensor in tensors[0].values()):
            torch.cuda.synchronize()  # the copies are queued behind the step
        checkpoint = Checkpoint(step, model, optimizer, state)
        self._begin(lambda: self._write(checkpoint))

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        """A copy on the CPU, in the memory of the checkpoint before: pinning new pages costs more than copying."""
        tensor = whole(tensor)
        return self._memory(name, tensor).copy_(tensor.detach(), non_blocking=tensor.is_cuda)

    def _memory(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self.copies:
            self.copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return self.copies[name]

    def _write(self, checkpoint: Checkpoint) -> None:
        write(self.run, checkpoint)
        self.on_written(checkpoint.step)

    def _begin(self, work: Callable[[], object]) -> None:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self.error = error

        # Not a daemon: an interpreter that ends normally waits until the checkpoint is whole.
        self.thread = threading.Thread(target=guarded, name="checkpoint")
        self.thread.start()

    def wait(self) -> None:
        """Return when the last checkpoint is on the disk."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            error, self.error = self.error, None
            raise error


def flatten_optimizer(optimizer: torch.optim.Optimizer, names: dict[Tensor, str]) -> dict[str, Tensor]:
    """The optimizer's state as ``<parameter>:<entry>`` → tensor; safetensors holds nothing nested."""
    return dict(_optimizer_entries(optimizer, names))


def _optimizer_entries(
    optimizer: torch.optim.Optimizer, names: dict[Tensor, str]
) -> Iterator[tuple[str, Tensor]]:
    for parameter, entries in optimizer.state.items():
        for entry, value in entries.items():
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
            yield f"{names[parameter]}:{entry}", tensor


def restore_model(names: dict[Tensor, str], saved: dict[str, Tensor]) -> None:
    """Put the weights into the parameters that ``names`` names; each process takes its part."""
    if strange := set(names.values()) ^ set(saved):
        raise UserError(
            f"the checkpoint and the network differ in {', '.join(sorted(strange)[:3])}: it was written by another "
            "version of this code. Go on with that version, or start another run with --name NEW-NAME"
        )
    with torch.no_grad():
        for parameter, name in names.items():
            parameter.copy_(part_like(saved[name].to(parameter.device), parameter))


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: dict[Tensor, str], saved: dict[str, Tensor]
) -> None:
    """Put back what ``flatten_optimizer`` took, each tensor on its parameter's device."""
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        name, _, entry = key.rpartition(":")
        by_parameter.setdefault(name, {})[entry] = tensor
    mine = {p for group in optimizer.param_groups for p in group["params"]}
    for parameter, name in names.items():
        if name in by_parameter and parameter in mine:
            optimizer.state[parameter] = {
                entry: _placed(tensor.to(parameter.device), parameter)
                if tensor.dim()
                else _scalar(tensor, optimizer, parameter)
                for entry, tensor in by_parameter[name].items()
            }


def _placed(tensor: Tensor, parameter: Tensor) -> Tensor:
    """What has the parameter's shape is divided as the parameter is."""
    return part_like(tensor, parameter) if tensor.shape == parameter.shape else tensor


def _scalar(tensor: Tensor, optimizer: torch.optim.Optimizer, parameter: Tensor) -> Tensor:
    # torch's fused AdamW keeps its step count on the parameter's device, the others on the CPU.
    return tensor.to(parameter.device) if optimizer.defaults.get("fused") else tensor
