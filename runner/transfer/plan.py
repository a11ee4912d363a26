"""What a transfer will do, worked out before it is done: a pure value. It deletes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from job.step_folders import STEP_FOLDER
from runner.targets.modal.volume import RemoteEntry
from runner.transfer.selection import Checkpoint, Selection
from runner.transfer.workers import FailedTransfer

# A dataset's meta.json says by its presence that the dataset is complete.
MARKER = "meta.json"


@dataclass(frozen=True)
class Transfer:
    """A file that moves. ``why``: new, changed, or continued where a part of it is there."""

    entry: RemoteEntry
    why: str


@dataclass(frozen=True)
class TransferPlan:
    """``files`` move in parallel with ``checkpoints``; then ``markers``; then each run's ``latest``."""

    files: tuple[Transfer, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    markers: tuple[Transfer, ...] = ()
    latest: tuple[tuple[str, str], ...] = ()  # run, name of its newest complete checkpoint
    same: int = 0
    refused: tuple[FailedTransfer, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many files move."""
        return len(self.files) + len(self.markers) + sum(len(c.entries) for c in self.checkpoints)

    @property
    def size(self) -> int:
        """Bytes that move at most: blocks that are there already don't."""
        loose = sum(transfer.entry.size for transfer in (*self.files, *self.markers))
        return loose + sum(checkpoint.size for checkpoint in self.checkpoints)

    def rows(self) -> list[dict[str, Any]]:
        """What moves, for a table or JSON."""
        rows = [_row(t.entry, t.why) for t in (*self.files, *self.markers)]
        rows += [_row(entry, "checkpoint") for c in self.checkpoints for entry in c.entries]
        return sorted(rows, key=lambda row: str(row["path"]))


def make_plan(
    chosen: Selection,
    is_same: Callable[[RemoteEntry], bool],
    why: Callable[[RemoteEntry], str],
) -> TransferPlan:
    """Leave out what is the same. A checkpoint is one thing: it is the same if all its files are."""
    moving = [entry for entry in chosen.files if not is_same(entry)]
    checkpoints = [c for c in chosen.checkpoints if not all(is_same(entry) for entry in c.entries)]
    transfers = [
        Transfer(entry, why(entry)) for entry in sorted(moving, key=lambda entry: entry.path)
    ]
    latest: dict[str, Checkpoint] = {}
    for checkpoint in chosen.checkpoints:
        if checkpoint.run not in latest or latest[checkpoint.run].step < checkpoint.step:
            latest[checkpoint.run] = checkpoint
    kept = [c for c in chosen.checkpoints if c not in checkpoints]
    return TransferPlan(
        files=tuple(t for t in transfers if not is_marker(t.entry.path)),
        checkpoints=tuple(checkpoints),
        markers=tuple(t for t in transfers if is_marker(t.entry.path)),
        latest=tuple((run, checkpoint.name) for run, checkpoint in sorted(latest.items())),
        same=len(chosen.files) - len(moving) + sum(len(c.entries) for c in kept),
        refused=tuple(chosen.refused),
        notes=tuple(chosen.notes),
    )


def is_marker(path: str) -> bool:
    """Whether the file's presence says that its folder is complete."""
    return path.rsplit("/", 1)[-1] == MARKER


def waits(marker: str, lost: set[str]) -> bool:
    """Whether a file of the folder that the marker speaks for could not be moved."""
    folder = marker.removesuffix(MARKER)
    return any(path.startswith(folder) for path in lost)


def step_of_name(name: str) -> int:
    """100 of ``step_00000100``; -1 for another name."""
    match = STEP_FOLDER.match(name)
    return int(match[1]) if match else -1


def _row(entry: RemoteEntry, why: str) -> dict[str, Any]:
    return {"path": entry.path, "bytes": entry.size, "why": why}
