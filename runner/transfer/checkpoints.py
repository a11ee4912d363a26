"""Runs and checkpoints as names in a listing: records, steps and manifests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from job.step_folders import MANIFEST, STEP_FOLDER, sha256

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
        tree = json.loads(content)
        return {
            str(name): FileDigest(int(digest["bytes"]), str(digest["sha256"]))
            for name, digest in tree.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
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
    """Return whether ``<run>/...`` is one of the run's records."""
    parts = path.split("/")
    return (len(parts) == 2 and parts[1] in RECORD_FILES) or (
        len(parts) > 2 and parts[1] in RECORD_FOLDERS
    )


def find_incomplete(manifest: Manifest, sizes: Mapping[str, int]) -> str | None:
    """Say which file is missing or has another size; None if all are complete."""
    for name, digest in manifest.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != digest.bytes:
            return f"{name} has {sizes[name]} bytes, expected {digest.bytes}"
    return None


def is_intact(path: Path, digest: FileDigest) -> bool:
    """Return whether the file has the size and SHA-256 of ``digest``."""
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
