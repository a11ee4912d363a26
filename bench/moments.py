"""The moments at which `bench kills` strikes, told by what lies on the disk, and where a kill struck."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from job.paths import VolumePaths
from job.run_record import read_record

RUN = "killed"
LATER_SECONDS = 0.003  # at most, between the sign and the kill


@dataclass(frozen=True)
class Moment:
    """When to strike: at the ``nth`` time that ``sign`` is seen, or ``seconds`` after the start without a sign."""

    name: str
    sign: Callable[[VolumePaths], str] | None
    nth: int = 1
    later: float = 0.0


def partial(volumes: VolumePaths) -> str:
    """The checkpoint that is being written."""
    return ",".join(p.name for p in volumes.run(RUN).glob(".partial_step_*"))


def sealed(volumes: VolumePaths) -> str:
    """The checkpoint that has its manifest and not its name."""
    return ",".join(p.parent.name for p in volumes.run(RUN).glob(".partial_step_*/manifest.json"))


def renamed(volumes: VolumePaths) -> str:
    """The newest checkpoint, where `latest` does not name it yet."""
    run = volumes.run(RUN)
    newest = max((p.name for p in run.glob("step_*")), default="")
    latest = run / "latest"
    return (
        newest if newest and (not latest.exists() or latest.read_text().strip() != newest) else ""
    )


def preparing(volumes: VolumePaths) -> str:
    """The shard that is being written."""
    return ",".join(p.name for p in volumes.dataset("tiny").glob(".*.part"))


def nearly_prepared(volumes: VolumePaths) -> str:
    """The validation shard has its name, and the dataset is not complete."""
    folder = volumes.dataset("tiny")
    return "yes" if any(folder.glob("*val*.bin")) and not (folder / "meta.json").exists() else ""


def prepared(volumes: VolumePaths) -> str:
    """The dataset is complete, its journal still there."""
    folder = volumes.dataset("tiny")
    return "yes" if (folder / "meta.json").exists() and (folder / ".progress.json").exists() else ""


def ending(volumes: VolumePaths) -> str:
    """The last sample is being written, or was."""
    return "yes" if (volumes.run(RUN) / "samples").exists() else ""


def random_moment(rng: random.Random, volumes: VolumePaths, whole_seconds: float) -> Moment:
    """A random one of those that can still come."""
    later = rng.random() * LATER_SECONDS
    signs: list[Callable[[VolumePaths], str]] = [partial, partial, sealed, renamed, ending]
    if not (volumes.dataset("tiny") / "meta.json").exists():
        signs = [preparing, nearly_prepared, prepared]
    if rng.random() < 0.4:
        return Moment("anywhere", None, later=rng.random() * whole_seconds)
    sign = rng.choice(signs)
    return Moment(
        sign.__name__,
        sign,
        nth=rng.randint(1, 3) if sign in (partial, sealed, renamed) else 1,
        later=later,
    )


def what_it_left(volumes: VolumePaths) -> str:
    """Where a kill struck, told by the files."""
    run = volumes.run(RUN)
    if not (volumes.dataset("tiny") / "meta.json").exists():
        return (
            "data half prepared"
            if volumes.dataset("tiny").exists()
            else "before anything was written"
        )
    if prepared(volumes):
        return "data complete, its journal not yet removed"
    if sealed(volumes):
        return "checkpoint complete, not yet renamed"
    if partial(volumes):
        return "checkpoint half written"
    if renamed(volumes):
        return "checkpoint renamed, latest not yet moved"
    record = read_record(run)
    if record is not None and record.status == "finished":
        return "run finished, process not yet ended"
    if ending(volumes):
        return "last sample written, run not yet finished"
    return "between checkpoints" if (run / "latest").exists() else "before the first checkpoint"
