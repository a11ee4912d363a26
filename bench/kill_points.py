"""The points at which `bench crash-test` kills a run, recognized by the files on the disk."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from corpus.dataset import STAGING
from job.paths import VolumePaths
from job.run_record import read_record

RUN = "killed"
MAX_DELAY_S = 0.003  # between the recognized files and the kill
ANYWHERE_SHARE = 0.4  # of the kills; the others wait for certain files

Sign = Callable[[VolumePaths], str]  # the name of what is seen, or ""


@dataclass(frozen=True)
class KillPoint:
    """Kill ``delay`` seconds after ``sign`` appeared ``nth`` times, or after the start if None."""

    name: str
    sign: Sign | None
    nth: int = 1
    delay: float = 0.0


def checkpoint_partial(volumes: VolumePaths) -> str:
    """Return the checkpoint that is being written."""
    return ",".join(path.name for path in volumes.run(RUN).glob(".partial_step_*"))


def checkpoint_complete(volumes: VolumePaths) -> str:
    """Return the checkpoint that has a manifest but not yet its final name."""
    paths = volumes.run(RUN).glob(".partial_step_*/manifest.json")
    return ",".join(path.parent.name for path in paths)


def checkpoint_renamed(volumes: VolumePaths) -> str:
    """Return the newest checkpoint if `latest` does not name it yet."""
    run = volumes.run(RUN)
    newest = max((path.name for path in run.glob("step_*")), default="")
    latest = run / "latest"
    is_named = latest.exists() and latest.read_text().strip() == newest
    return "" if is_named else newest


def shard_partial(volumes: VolumePaths) -> str:
    """Return the shard that is being written."""
    return ",".join(path.name for path in (volumes.dataset("tiny") / STAGING).glob(".*.part"))


def shards_complete(volumes: VolumePaths) -> str:
    """Return "yes" if the validation shard exists but the dataset is not complete."""
    folder = volumes.dataset("tiny") / STAGING
    return "yes" if any(folder.glob("*val*.bin")) and not (folder / "meta.json").exists() else ""


def dataset_complete(volumes: VolumePaths) -> str:
    """Return "yes" if the dataset is complete but not yet in its final place."""
    return "yes" if (volumes.dataset("tiny") / STAGING / "meta.json").exists() else ""


def sampling(volumes: VolumePaths) -> str:
    """Return "yes" once the last sample is being written."""
    return "yes" if (volumes.run(RUN) / "samples").exists() else ""


REPEATED = (checkpoint_partial, checkpoint_complete, checkpoint_renamed)
DATA_SIGNS: tuple[Sign, ...] = (shard_partial, shards_complete, dataset_complete)
TRAIN_SIGNS: tuple[Sign, ...] = (
    checkpoint_partial,
    checkpoint_partial,  # the longest of them
    checkpoint_complete,
    checkpoint_renamed,
    sampling,
)


def random_kill_point(rng: random.Random, volumes: VolumePaths, run_seconds: float) -> KillPoint:
    """Choose one of the points that the run can still reach."""
    delay = rng.random() * MAX_DELAY_S
    has_data = (volumes.dataset("tiny") / "meta.json").exists()
    if rng.random() < ANYWHERE_SHARE:
        return KillPoint("anywhere", None, delay=rng.random() * run_seconds)
    sign = rng.choice(TRAIN_SIGNS if has_data else DATA_SIGNS)
    nth = rng.randint(1, 3) if sign in REPEATED else 1
    return KillPoint(sign.__name__, sign, nth, delay)


def describe_state(volumes: VolumePaths) -> str:
    """Tell from the files where a kill hit the run."""
    run = volumes.run(RUN)
    if dataset_complete(volumes):
        return "data complete, not yet in its final place"
    if not (volumes.dataset("tiny") / "meta.json").exists():
        has_started = volumes.dataset("tiny").exists()
        return "data partly prepared" if has_started else "before the first file"
    if checkpoint_complete(volumes):
        return "checkpoint complete, not yet renamed"
    if checkpoint_partial(volumes):
        return "checkpoint partly written"
    if checkpoint_renamed(volumes):
        return "checkpoint renamed, latest not yet moved"
    record = read_record(run)
    if record is not None and record.status == "finished":
        return "run finished, process not yet ended"
    if sampling(volumes):
        return "last sample written, run not yet finished"
    return "between checkpoints" if (run / "latest").exists() else "before the first checkpoint"
