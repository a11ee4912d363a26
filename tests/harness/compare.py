"""Compare runs and datasets of two volumes bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from job.metrics import read_metrics
from job.paths import VolumePaths

# Fields that differ between two uninterrupted runs: times and the history of attempts.
VARYING = {"created", "train_seconds", "seconds", "attempts", "git"}
VARYING |= {"expected_seconds", "expected_seconds_now"}


def differences(one: Path, other: Path, run: str, dataset: str) -> list[str]:
    """List the differences of a run and its dataset between two folders of volumes."""
    sides = [
        {
            **_files(root, run, dataset),
            **_names(root, run, dataset),
            **_record(root, run),
            **_curve(root, run),
        }
        for root in (one, other)
    ]
    keys = sorted({*sides[0], *sides[1]})
    return [
        f"{key}: {_short(sides[0].get(key))} and {_short(sides[1].get(key))}"
        for key in keys
        if sides[0].get(key) != sides[1].get(key)
    ]


def _short(value: Any) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else repr(value)


def _files(root: Path, run: str, dataset: str) -> dict[str, bytes]:
    volumes = VolumePaths.under(root)
    folder = volumes.run(run)
    latest = folder / "latest"
    newest = folder / latest.read_text().strip() if latest.exists() else folder
    paths = [
        *volumes.dataset(dataset).glob("*.bin"),
        *newest.glob("*.safetensors"),
        *folder.glob("samples/*.txt"),
        *folder.glob("tokenizer.json"),
        *folder.glob("recipe.yaml"),
    ]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def _names(root: Path, run: str, dataset: str) -> dict[str, str]:
    """Name every file, so that a leftover file is a difference."""
    volumes = VolumePaths.under(root)
    return {
        f"file {path.relative_to(root)}": "exists"
        for folder in (volumes.run(run), volumes.dataset(dataset))
        for path in folder.rglob("*")
        if path.is_file() and "tensorboard" not in path.parts
    }


def _record(root: Path, run: str) -> dict[str, Any]:
    path = VolumePaths.under(root).run(run) / "run.json"
    tree = json.loads(path.read_bytes()) if path.exists() else {}
    return {f"run.json {key}": value for key, value in tree.items() if key not in VARYING}


def _curve(root: Path, run: str) -> dict[str, list[Any]]:
    """Read loss, gradient norm and learning rate of each step, twice if it was logged twice."""
    curve: dict[str, list[Any]] = {}
    for line in read_metrics(VolumePaths.under(root).run(run) / "metrics.jsonl"):
        if line["kind"] != "checkpoint":
            values = [line.get(key) for key in ("tokens", "loss", "grad_norm", "lr")]
            curve.setdefault(f"step {line['kind']} {line['step']:06d}", []).append(values)
    return curve
