"""Choose the files of a transfer, and show the plan and the result.

`make_plan` compares the listing of one side with the other side; a transfer deletes nothing. It
knows runs, checkpoints and datasets by the names of their files. Checkpoints are checked against
their manifests, here also for `runner prune` and `runner doctor`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from job import step_folders
from job.exit_status import ExitStatus
from job.format import byte_size, count
from job.step_folders import LATEST, MANIFEST, STEP_FOLDER, sha256
from job.typed_json import read_json
from runner.console import CliContext
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
IN_STEP_FOLDER = re.compile(r"([^/]+)/(step_\d{8,})(?:/|$)")

# A dataset is complete if it has this file.
MARKER = "meta.json"

PROCESS_FILES = {"lock", "heartbeat"}  # they belong to a process on one machine

MAX_SHOWN = 10  # failures; --json lists all


class ContentMismatch(OSError):
    """A file that differs from its manifest, or that changed during the transfer."""


@dataclass(frozen=True)
class FileDigest:
    """Size and SHA-256 of a file, as a manifest gives them."""

    bytes: int
    sha256: str


def parse_manifest(content: bytes) -> dict[str, FileDigest] | None:
    """Return the files of a checkpoint by name; None if ``content`` is not a manifest."""
    try:
        return read_json(dict[str, FileDigest], content)
    except ValueError:
        return None


def find_incomplete(manifest: bytes, sizes: Mapping[str, int]) -> str | None:
    """Return which file of the manifest is missing or has a different size; None if none is."""
    files = parse_manifest(manifest)
    if not files:
        return f"{MANIFEST} is missing or unreadable"
    for name, digest in files.items():
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


def newest_intact(files: VolumeFiles, run: str, names: Iterable[str]) -> str | None:
    """Return the newest intact one of a run's checkpoints ``names``; None if none is intact.

    Files on this machine are hashed, those elsewhere have the size in the manifest.
    """
    for name in sorted(filter(STEP_FOLDER.match, names), key=parse_step_name, reverse=True):
        path = f"{run}/{name}"
        if isinstance(files, LocalVolume):
            problem = step_folders.find_damage(files.root / path) or None
        else:
            sizes = {entry.path.rpartition("/")[2]: entry.size for entry in files.entries(path)}
            manifest = files.read(f"{path}/{MANIFEST}") if MANIFEST in sizes else b""
            problem = find_incomplete(manifest, sizes)
        if problem is None:
            return name
    return None


def parse_step_name(name: str) -> int:
    """Return 100 for ``step_00000100``, and -1 for any other name."""
    match = STEP_FOLDER.match(name)
    return int(match[1]) if match else -1


def newest_step(run: str, paths: Iterable[str]) -> int | None:
    """Return the newest step of ``run`` that has a manifest in a listing; None without one."""
    manifest = re.compile(rf"{re.escape(run)}/step_(\d{{8,}})/{re.escape(MANIFEST)}")
    return max((int(m[1]) for path in paths if (m := manifest.fullmatch(path))), default=None)


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

    @property
    def is_marker(self) -> bool:
        """Return True if the file says that its folder is complete."""
        return self.entry.path.rsplit("/", 1)[-1] == MARKER


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. ``folder`` is ``<run>/step_...``."""

    folder: str
    entries: tuple[RemoteEntry, ...]
    manifest_content: bytes

    @cached_property
    def manifest(self) -> dict[str, FileDigest]:
        """Return the digests of its files by name."""
        return parse_manifest(self.manifest_content) or {}

    @property
    def run(self) -> str:
        """Return the name of its run."""
        return self.folder.split("/")[0]

    @property
    def name(self) -> str:
        """Return ``step_...``, which ``latest`` names."""
        return self.folder.split("/")[1]


@dataclass(frozen=True)
class TransferPlan:
    """Files and checkpoints to transfer in parallel; then ``markers``; then each ``latest``."""

    files: tuple[Transfer, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    markers: tuple[Transfer, ...] = ()
    latest: tuple[tuple[str, str], ...] = ()  # run, name of its newest complete checkpoint
    unchanged: int = 0
    refused: tuple[FailedTransfer, ...] = ()  # files that cannot be transferred
    notes: tuple[str, ...] = ()

    @property
    def transfers(self) -> list[Transfer]:
        """Return the files to transfer, those of checkpoints included."""
        of_checkpoints = (entry for checkpoint in self.checkpoints for entry in checkpoint.entries)
        return [
            *self.files,
            *self.markers,
            *(Transfer(entry, Reason.CHECKPOINT) for entry in of_checkpoints),
        ]

    @property
    def count(self) -> int:
        """Return the number of files to transfer."""
        return len(self.transfers)

    @property
    def size(self) -> int:
        """Return the bytes of these files; blocks that exist already are not transferred."""
        return sum(transfer.entry.size for transfer in self.transfers)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per file, for a table or JSON."""
        rows = [
            {"path": t.entry.path, "bytes": t.entry.size, "reason": t.reason}
            for t in self.transfers
        ]
        return sorted(rows, key=lambda row: str(row["path"]))


def make_plan(
    entries: Iterable[RemoteEntry],
    read_manifest: Callable[[RemoteEntry], bytes],
    is_unchanged: Callable[[RemoteEntry], bool],
    reason: Callable[[RemoteEntry], Reason],
    *,
    runs: bool,
    everything: bool,
    refused: Iterable[FailedTransfer] = (),
) -> TransferPlan:
    """Choose files from a listing, without unchanged files and checkpoints.

    With ``runs``, the listing is of the checkpoints volume: take each run's records and its newest
    complete checkpoint, or with ``everything`` all files and checkpoints.
    """
    entries = list(entries)
    refusals, notes = list[FailedTransfer](), list[str]()
    files, steps = list[RemoteEntry](), dict[tuple[str, str], list[RemoteEntry]]()
    # Only a trainer's run has steps. Of a command's run and a persisted path, take every file.
    trained = {entry.path.split("/")[0] for entry in entries if IN_STEP_FOLDER.match(entry.path)}
    for entry in entries:
        if entry.kind == "directory" or is_temporary(entry.path):
            continue
        problem = unsafe_reason(entry.path)
        if problem is not None:
            refusals.append(FailedTransfer(entry.path, f"the name {problem}"))
        elif entry.kind != "file":
            refusals.append(FailedTransfer(entry.path, f"a {entry.kind}, not a file"))
        elif runs and (step := IN_STEP_FOLDER.match(entry.path)) is not None:
            steps.setdefault((step[1], step[2]), []).append(entry)
        elif not runs or _is_selected(entry.path, everything, entry.path.split("/")[0] in trained):
            files.append(entry)
    checkpoints: list[Checkpoint] = []
    latest: dict[str, str] = {}
    for run, name in sorted(steps, key=lambda step: (step[0], -parse_step_name(step[1]))):
        if run in latest and not everything:
            continue
        folder, inside = f"{run}/{name}", steps[run, name]
        sizes = {entry.path.removeprefix(f"{folder}/"): entry.size for entry in inside}
        listed = (entry for entry in inside if entry.path == f"{folder}/{MANIFEST}")
        content = next(map(read_manifest, listed), b"")
        if (problem := find_incomplete(content, sizes)) is not None:
            notes.append(f"skipping {folder}, which is not complete: {problem}")
            continue
        latest.setdefault(run, name)
        checkpoints.append(Checkpoint(folder, tuple(inside), content))
    changed = [c for c in checkpoints if not all(map(is_unchanged, c.entries))]
    transfers = [
        Transfer(entry, reason(entry))
        for entry in sorted(files, key=lambda entry: entry.path)
        if not is_unchanged(entry)
    ]
    plan = TransferPlan(
        files=tuple(t for t in transfers if not t.is_marker),
        checkpoints=tuple(changed),
        markers=tuple(t for t in transfers if t.is_marker),
        latest=tuple(latest.items()),
        refused=(*refusals, *refused),
        notes=tuple(notes),
    )
    total = len(files) + sum(len(checkpoint.entries) for checkpoint in checkpoints)
    return replace(plan, unchanged=total - plan.count)


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


def _is_selected(path: str, everything: bool, trained: bool) -> bool:
    names = path.split("/")[1:]
    if path.rpartition("/")[2] in PROCESS_FILES or names == [LATEST]:
        return False  # `latest` is derived from the complete checkpoints
    if everything:
        return True
    if "/last_complete/" in path:
        return False  # the backup of a command's checkpoint
    return not trained or names[0] in (RECORD_FOLDERS if len(names) > 1 else RECORD_FILES)


@dataclass(frozen=True)
class TransferResult:
    """The plan, the files that failed, and ``size``, the bytes that were transferred."""

    plan: TransferPlan
    failed: tuple[FailedTransfer, ...]
    seconds: float
    size: int

    @property
    def missing(self) -> tuple[FailedTransfer, ...]:
        """Return every file that belongs to the transfer and did not arrive."""
        return (*self.plan.refused, *self.failed)

    @property
    def is_complete(self) -> bool:
        """Return True if every file arrived."""
        return not self.missing

    @property
    def status(self) -> ExitStatus:
        """Return the exit status."""
        return ExitStatus.DONE if self.is_complete else ExitStatus.ERROR


def print_result(cli: CliContext, result: TransferResult, verb: str, where: str) -> None:
    """Print how many files were transferred, were unchanged and are missing."""
    plan, missing = result.plan, result.missing
    moved = max(0, plan.count - len(result.failed))
    summary = f"{verb} {count(moved, 'file')} {where}"
    if moved:
        summary += f", {byte_size(result.size)} in {result.seconds:.0f} s"
    if plan.unchanged:
        summary += f"; {count(plan.unchanged, 'file')} unchanged"
    cli.info(summary)
    for item in missing[:MAX_SHOWN]:
        cli.info(f"  missing: {ascii(item.path)[1:-1]}: {item.reason}")
    if len(missing) > MAX_SHOWN:
        cli.info(f"  and {len(missing) - MAX_SHOWN:,} more; --json lists them all")
    if missing:
        total = count(plan.count + plan.unchanged + len(plan.refused), "file")
        remedy = "fix these and run" if plan.refused else "run"
        cli.info(f"error: {len(missing):,} of {total} missing; {remedy} `{cli.line}` again")


def result_to_json(result: TransferResult, **extra: object) -> dict[str, object]:
    """Return the result for --json."""
    return {
        **extra,
        "complete": result.is_complete,
        "files": result.plan.rows(),
        "unchanged": result.plan.unchanged,
        "bytes": result.size,
        "seconds": round(result.seconds, 3),
        "missing": [asdict(item) for item in result.missing],
        "notes": list(result.plan.notes),
    }


def show_plan(cli: CliContext, plan: TransferPlan, as_json: bool) -> None:
    """Print the plan on stdout, for --dry-run."""
    if as_json:
        cli.json(
            {
                "files": plan.rows(),
                "bytes": plan.size,
                "unchanged": plan.unchanged,
                "refused": [asdict(item) for item in plan.refused],
                "notes": list(plan.notes),
            }
        )
        return
    for row in plan.rows():
        cli.write(f"{row['reason']:<10} {byte_size(row['bytes']):>10}  {ascii(row['path'])[1:-1]}")
    for item in plan.refused:
        cli.info(f"  refused: {ascii(item.path)[1:-1]}: {item.reason}")
    for note in plan.notes:
        cli.info(f"  {note}")
    cli.info(
        f"would transfer {count(plan.count, 'file')}, at most {byte_size(plan.size)}; "
        f"{count(plan.unchanged, 'file')} unchanged"
    )
