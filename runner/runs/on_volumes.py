"""What several ask of a target's volumes: the record of a run, and whether a dataset is complete."""

from __future__ import annotations

from job.runs import RunRecord, parse_record
from job.step_folders import LATEST
from runner.targets.protocol import Files


def record_of(files: Files | None, run: str) -> RunRecord | None:
    """The run's record on a checkpoints volume; None where there is none."""
    if files is None:
        return None
    try:
        return parse_record(files.read(f"{run}/run.json"))
    except (FileNotFoundError, NotADirectoryError):
        return None


def step_of(files: Files, run: str) -> int | None:
    """The step of the run's newest checkpoint, which the file ``latest`` names; None where there is none."""
    try:
        named = files.read(f"{run}/{LATEST}").decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    number = named.strip().removeprefix("step_")
    return int(number) if number.isdigit() else None


def is_ready(data: Files, dataset: str) -> bool | None:
    """Whether the dataset is complete; None for shards of another origin, which have no meta.json."""
    try:
        names = [entry.path.rpartition("/")[2] for entry in data.entries(dataset)]
    except (FileNotFoundError, NotADirectoryError):
        return False
    if "meta.json" in names:
        return True
    return None if any("train" in name and name.endswith(".bin") for name in names) else False
