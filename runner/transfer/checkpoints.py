"""Runs and their checkpoints as names in a listing: what is a record, what a step, what is complete."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from job.step_folders import MANIFEST, STEP_FOLDER, sha256

REPLACED = ".replaced_"

# What a run tells of itself, beside its checkpoints.
RECORDS = {
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

# Files that only ever grow.
APPENDED = re.compile(r"(^|/)(log\.txt|output\.txt|metrics\.jsonl|events\.out\.tfevents[^/]*)$")

CHUNK = 1 << 20


class Mismatch(OSError):
    """A file that is not what its manifest says, or that changed while it was transferred."""


@dataclass(frozen=True)
class Sum:
    """What a manifest says of one file."""

    bytes: int
    sha256: str


Manifest = Mapping[str, Sum]


def parse_manifest(content: bytes) -> dict[str, Sum] | None:
    """The files of a checkpoint, by name; None where this is no manifest."""
    try:
        tree = json.loads(content)
        return {
            str(name): Sum(int(sums["bytes"]), str(sums["sha256"])) for name, sums in tree.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def step_of(path: str) -> tuple[str, str, int] | None:
    """``("run", "step_00000100", 100)`` for a path in a step folder of a run; else None."""
    parts = path.split("/")
    if len(parts) < 2 or (match := STEP_FOLDER.match(parts[1])) is None:
        return None
    return parts[0], parts[1], int(match[1])


def is_record(path: str) -> bool:
    """Whether ``<run>/...`` is one of the run's records."""
    parts = path.split("/")
    return (len(parts) == 2 and parts[1] in RECORDS) or (
        len(parts) > 2 and parts[1] in RECORD_FOLDERS
    )


def missing_from(manifest: Manifest, sizes: Mapping[str, int]) -> str | None:
    """Which file of the manifest is not there in its size; None where all are. ``sizes`` by name."""
    for name, sums in manifest.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != sums.bytes:
            return f"{name} has {sizes[name]} bytes, not {sums.bytes}"
    return None


def is_whole(path: Path, sums: Sum) -> bool:
    """Whether the file is there with the size and the SHA-256 of the manifest."""
    try:
        return path.stat().st_size == sums.bytes and sha256(path) == sums.sha256
    except OSError:
        return False


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's folder on this machine; None where it is sound."""
    try:
        manifest = parse_manifest((folder / MANIFEST).read_bytes())
    except OSError:
        manifest = None
    if manifest is None:
        return f"{MANIFEST} is missing or unreadable"
    for name, sums in manifest.items():
        if not is_whole(folder / name, sums):
            return f"{name} is not what {MANIFEST} says"
    return None


def newest_step(run: Path) -> int | None:
    """The newest step of a run on this machine that has a manifest; None without one."""
    return max(_steps(path.parent.name for path in run.glob(f"step_*/{MANIFEST}")), default=None)


def newest_remote_step(run: str, paths: Iterable[str]) -> int | None:
    """The same, of a listing."""
    found = (path.split("/") for path in paths if path.endswith(f"/{MANIFEST}"))
    return max(
        _steps(parts[1] for parts in found if len(parts) == 3 and parts[0] == run), default=None
    )


def _steps(names: Iterable[str]) -> Iterable[int]:
    return (int(match[1]) for name in names if (match := STEP_FOLDER.match(name)))
