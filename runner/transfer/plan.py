"""Choose the files of a transfer from two listings. A plan is a pure value, and deletes nothing.

Runs and checkpoints are names in a listing: records, steps and manifests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from job import step_folders
from job.step_folders import LATEST, MANIFEST, STEP_FOLDER, sha256
from job.typed_json import read_json
from runner.target import LocalVolume, VolumeFiles
from runner.targets.blocks import RemoteEntry
from runner.transfer.mapping import is_temporary, unsafe_reason
from runner.transfer.workers import FailedTransfer

REPLACED = ".replaced_"
RECORD_FILES = {
    "run.json",
    "recipe.yaml",
    "tokenizer.json",
    "log.txt",
    "metrics.jsonl",
    "launch.json",
    "cloud.json",
    "exit_status",
    "output.txt",
}
RECORD_FOLDERS = {"samples", "tensorboard"}
APPEND_ONLY = re.compile(r"(^|/)(log\.txt|output\.txt|metrics\.jsonl|events\.out\.tfevents[^/]*)$")


class ContentMismatch(OSError):
    """A file that differs from its manifest, or that changed during the transfer."""


@dataclass(frozen=True)
class FileDigest:
    """Size and SHA-256 of a file, as a manifest gives them."""

    bytes: int
    sha256: str


Manifest = Mapping[str, FileDigest]


def parse_manifest(content: bytes) -> dict[str, FileDigest] | None:
    """Return the files of a checkpoint by name; None if ``content`` is not a manifest."""
    try:
        return read_json(dict[str, FileDigest], content)
    except ValueError:
        return None


def parse_step_path(path: str) -> tuple[str, str, int] | None:
    """Return ``("run", "step_00000100", 100)`` for a path in a checkpoint's folder; else None."""
    parts = path.split("/")
    if len(parts) < 2 or (match := STEP_FOLDER.match(parts[1])) is None:
        return None
    return parts[0], parts[1], int(match[1])


def parse_step_name(name: str) -> int:
    """Return 100 for ``step_00000100``, and -1 for any other name."""
    match = STEP_FOLDER.match(name)
    return int(match[1]) if match else -1


def is_record(path: str) -> bool:
    """Return True if ``<run>/...`` is one of the run's records."""
    parts = path.split("/")
    return (len(parts) == 2 and parts[1] in RECORD_FILES) or (
        len(parts) > 2 and parts[1] in RECORD_FOLDERS
    )


def find_incomplete(manifest: Manifest, sizes: Mapping[str, int]) -> str | None:
    """Say which file is missing or has a different size; None if all are complete."""
    for name, digest in manifest.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != digest.bytes:
            return f"{name} has {sizes[name]} bytes, expected {digest.bytes}"
    return None


def is_intact(path: Path, digest: FileDigest) -> bool:
    """Return True if the file has the size and SHA-256 of ``digest``."""
    try:
        return path.stat().st_size == digest.bytes and sha256(path) == digest.sha256
    except OSError:
        return False


def find_damage(folder: Path) -> str | None:
    """Say what is wrong with a local checkpoint; None if it is intact."""
    try:
        manifest = parse_manifest((folder / MANIFEST).read_bytes())
    except OSError:
        manifest = None
    if manifest is None:
        return f"{MANIFEST} is missing or unreadable"
    for name, digest in manifest.items():
        if not is_intact(folder / name, digest):
            return f"{name} differs from {MANIFEST}"
    return None


def newest_intact(files: VolumeFiles, run: str, names: Iterable[str]) -> str | None:
    """Return the newest intact one of a run's checkpoints ``names``; None if none is intact.

    Files on this machine are hashed, those elsewhere have the size in the manifest.
    """
    for name in sorted(filter(STEP_FOLDER.match, names), key=parse_step_name, reverse=True):
        path = f"{run}/{name}"
        if isinstance(files, LocalVolume):
            is_intact = not step_folders.find_damage(files.root / path)
        else:
            sizes = {entry.path.rpartition("/")[2]: entry.size for entry in files.entries(path)}
            text = files.read(f"{path}/{MANIFEST}") if MANIFEST in sizes else b""
            manifest = parse_manifest(text)
            is_intact = bool(manifest) and not find_incomplete(manifest or {}, sizes)
        if is_intact:
            return name
    return None


def newest_step(run: Path) -> int | None:
    """Return the newest step of a local run that has a manifest; None without one."""
    return max(_steps(path.parent.name for path in run.glob(f"step_*/{MANIFEST}")), default=None)


def newest_remote_step(run: str, paths: Iterable[str]) -> int | None:
    """Return the newest step of ``run`` that has a manifest in a listing; None without one."""
    manifests = (path.split("/") for path in paths if path.endswith(f"/{MANIFEST}"))
    return max(
        _steps(parts[1] for parts in manifests if len(parts) == 3 and parts[0] == run),
        default=None,
    )


def _steps(names: Iterable[str]) -> Iterator[int]:
    return (step for name in names if (step := parse_step_name(name)) >= 0)


# A dataset is complete if it has this file.
MARKER = "meta.json"
PROCESS_FILES = {"lock", "heartbeat"}  # they belong to a process on one machine


class Reason(StrEnum):
    """The reason to transfer a file."""

    NEW = "new"
    CHANGED = "changed"
    CONTINUED = "continued"  # an earlier transfer stopped in the middle of it
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Transfer:
    """A file to transfer."""

    entry: RemoteEntry
    reason: Reason


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. ``folder`` is ``<run>/step_...``."""

    folder: str
    step: int
    entries: tuple[RemoteEntry, ...]
    manifest: Manifest = field(hash=False)
    manifest_content: bytes = b""

    @property
    def run(self) -> str:
        """Return the name of its run."""
        return self.folder.split("/")[0]

    @property
    def name(self) -> str:
        """Return ``step_...``, which ``latest`` names."""
        return self.folder.split("/")[1]

    @property
    def size(self) -> int:
        """Return the bytes in all its files."""
        return sum(entry.size for entry in self.entries)


@dataclass
class Selection:
    """Files that belong to a transfer; ``refused`` ones cannot be transferred."""

    files: list[RemoteEntry] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    refused: list[FailedTransfer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TransferPlan:
    """Files and checkpoints to transfer in parallel; then ``markers``; then each ``latest``."""

    files: tuple[Transfer, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    markers: tuple[Transfer, ...] = ()
    latest: tuple[tuple[str, str], ...] = ()  # run, name of its newest complete checkpoint
    unchanged: int = 0
    refused: tuple[FailedTransfer, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Return the number of files to transfer."""
        return len(self.files) + len(self.markers) + sum(len(c.entries) for c in self.checkpoints)

    @property
    def size(self) -> int:
        """Return the bytes of these files; blocks that exist already are not transferred."""
        loose = sum(transfer.entry.size for transfer in (*self.files, *self.markers))
        return loose + sum(checkpoint.size for checkpoint in self.checkpoints)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per file, for a table or JSON."""
        rows = [_row(t.entry, t.reason) for t in (*self.files, *self.markers)]
        rows += [_row(entry, Reason.CHECKPOINT) for c in self.checkpoints for entry in c.entries]
        return sorted(rows, key=lambda row: str(row["path"]))


def select(
    entries: Iterable[RemoteEntry],
    read_manifest: Callable[[RemoteEntry], bytes],
    *,
    runs: bool,
    everything: bool,
) -> Selection:
    """Choose files from a listing.

    With ``runs``, the listing is of the checkpoints volume: take each run's records and its newest
    complete checkpoint, or with ``everything`` all files and checkpoints.
    """
    selection = Selection()
    entries = list(entries)
    # Only a trainer's run has steps. Of a command's run and a persisted path, take every file.
    trained = {step[0] for entry in entries if (step := parse_step_path(entry.path)) is not None}
    steps: dict[tuple[str, str, int], list[RemoteEntry]] = {}
    for entry in entries:
        if entry.kind == "directory" or is_temporary(entry.path):
            continue
        reason = unsafe_reason(entry.path)
        if reason is not None:
            selection.refused.append(FailedTransfer(entry.path, f"the name {reason}"))
        elif entry.kind != "file":
            selection.refused.append(FailedTransfer(entry.path, f"a {entry.kind}, not a file"))
        elif runs and (step := parse_step_path(entry.path)) is not None:
            steps.setdefault(step, []).append(entry)
        elif not runs or _is_selected(entry.path, everything, entry.path.split("/")[0] in trained):
            selection.files.append(entry)
    has_newest: set[str] = set()
    for (run, name, step_number), files in sorted(
        steps.items(), key=lambda item: (item[0][0], -item[0][2])
    ):
        if run in has_newest and not everything:
            continue
        checkpoint = _read_checkpoint(f"{run}/{name}", step_number, files, read_manifest, selection)
        if checkpoint is not None:
            has_newest.add(run)
            selection.checkpoints.append(checkpoint)
    return selection


def make_plan(
    selection: Selection,
    is_unchanged: Callable[[RemoteEntry], bool],
    reason: Callable[[RemoteEntry], Reason],
) -> TransferPlan:
    """Omit unchanged files, and checkpoints all of whose files are unchanged."""
    moving = [entry for entry in selection.files if not is_unchanged(entry)]
    checkpoints = [
        c for c in selection.checkpoints if not all(is_unchanged(entry) for entry in c.entries)
    ]
    transfers = [
        Transfer(entry, reason(entry)) for entry in sorted(moving, key=lambda entry: entry.path)
    ]
    latest: dict[str, Checkpoint] = {}
    for checkpoint in selection.checkpoints:
        if checkpoint.run not in latest or latest[checkpoint.run].step < checkpoint.step:
            latest[checkpoint.run] = checkpoint
    unchanged = [c for c in selection.checkpoints if c not in checkpoints]
    return TransferPlan(
        files=tuple(t for t in transfers if not _is_marker(t.entry.path)),
        checkpoints=tuple(checkpoints),
        markers=tuple(t for t in transfers if _is_marker(t.entry.path)),
        latest=tuple((run, checkpoint.name) for run, checkpoint in sorted(latest.items())),
        unchanged=len(selection.files) - len(moving) + sum(len(c.entries) for c in unchanged),
        refused=tuple(selection.refused),
        notes=tuple(selection.notes),
    )


def split_markers(
    markers: Iterable[str], failed: Iterable[FailedTransfer]
) -> tuple[list[str], list[FailedTransfer]]:
    """Return the markers of complete folders, and a failure for each of the others."""
    paths = {item.path for item in failed}
    ready, waiting = [], []
    for marker in markers:
        folder = marker.removesuffix(MARKER)
        if any(path.startswith(folder) for path in paths):
            waiting.append(FailedTransfer(marker, "its folder is incomplete"))
        else:
            ready.append(marker)
    return ready, waiting


def _is_marker(path: str) -> bool:
    return path.rsplit("/", 1)[-1] == MARKER


def _is_selected(path: str, everything: bool, trained: bool) -> bool:
    name = path.rsplit("/", 1)[-1]
    if not everything and "/last_complete/" in path:
        return False  # the backup of a command's checkpoint
    if name in PROCESS_FILES or (name == LATEST and path.count("/") == 1):
        return False  # `latest` is derived from the complete checkpoints
    return everything or not trained or is_record(path)


def _read_checkpoint(
    folder: str,
    step: int,
    entries: list[RemoteEntry],
    read_manifest: Callable[[RemoteEntry], bytes],
    selection: Selection,
) -> Checkpoint | None:
    sizes = {entry.path.removeprefix(f"{folder}/"): entry.size for entry in entries}
    listed = next((entry for entry in entries if entry.path == f"{folder}/{MANIFEST}"), None)
    content = b"" if listed is None else read_manifest(listed)
    manifest = parse_manifest(content)
    problem = (
        f"{MANIFEST} is missing or unreadable"
        if manifest is None
        else find_incomplete(manifest, sizes)
    )
    if manifest is None or problem is not None:
        selection.notes.append(f"skipping {folder}, which is not complete: {problem}")
        return None
    return Checkpoint(folder, step, tuple(entries), manifest, content)


def _row(entry: RemoteEntry, reason: Reason) -> dict[str, Any]:
    return {"path": entry.path, "bytes": entry.size, "reason": reason}
