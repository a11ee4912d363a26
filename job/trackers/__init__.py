"""Experiment trackers: TensorBoard in the job's process, each other one in its own.

A tracker process (``follow.py``) reads what the job writes to its folder: metrics.jsonl,
samples/, recipe.yaml, run.json. So a tracker that hangs or fails can't delay or end the job, and
one whose server was away catches up. Standard library only: the runner reads this table too.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from job.typed_json import read_json

DEFAULT_PROJECT = "gpt-runner"

Numbers = dict[str, float]


@dataclass(frozen=True)
class TrackerInfo:
    """A tracker that a run can use; a recipe names its project with ``train.<name>_project``."""

    name: str
    label: str
    package: str  # to install, as in pyproject.toml
    variables: tuple[str, ...]  # passed to the job, and never shown: keys, and URLs with passwords
    online: tuple[str, ...]  # with one of these it sends to a server; else it writes to the folder

    def is_online(self, available: Container[str]) -> bool:
        """Return True if the job sends data to a server."""
        return any(name in available for name in self.online)


TRACKERS = {
    info.name: info
    for info in (
        TrackerInfo(
            "wandb", "Weights & Biases", "wandb>=0.20", ("WANDB_API_KEY",), ("WANDB_API_KEY",)
        ),
        TrackerInfo(
            "mlflow",
            "MLflow",
            "mlflow-skinny>=3.0",
            (
                "MLFLOW_TRACKING_URI",
                "MLFLOW_TRACKING_USERNAME",
                "MLFLOW_TRACKING_PASSWORD",
                "MLFLOW_TRACKING_TOKEN",
            ),
            ("MLFLOW_TRACKING_URI",),
        ),
        TrackerInfo(
            "trackio",
            "Trackio",
            "trackio>=0.20",
            ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WRITE_TOKEN", "HF_TOKEN"),
            ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"),
        ),
    )
}

VARIABLES = tuple(dict.fromkeys(name for info in TRACKERS.values() for name in info.variables))


def image_packages(names: Iterable[str]) -> tuple[str, ...]:
    """Return the packages of trackers, which the image has in a layer of their own."""
    return tuple(TRACKERS[name].package for name in sorted(names))


@dataclass(frozen=True)
class TrackedRun:
    """The run as a tracker shows it; ``id`` is unique, also if a name is used again."""

    folder: Path
    id: str
    name: str
    project: str
    config: dict[str, Any]
    group: str | None = None  # the sweep
    metadata: dict[str, str] = field(default_factory=dict)  # commit, target, gpu
    tags: list[str] = field(default_factory=list)


class LoggedStep(NamedTuple):
    """Everything about one step; ``samples`` are all so far, if there is a new one."""

    step: int
    numbers: Numbers
    samples: Sequence[tuple[int, str]] = ()


class Tracker(Protocol):
    """One tracker's run; its constructor takes a TrackedRun, and opens or resumes it."""

    url: str  # the run's page; without a server, the location of the data
    last_step: int | None  # the newest step that the tracker has, or -1; None if it can't tell

    def log(self, steps: Sequence[LoggedStep]) -> None:
        """Log the steps, whose numbers increase."""
        ...

    def upload(self, checkpoint: Path) -> None:
        """Upload the final checkpoint."""
        ...

    def close(self) -> None:
        """Send the remaining values."""
        ...


@dataclass
class TrackerState:
    """``tracker_<name>.json`` in the run's folder: the progress of one tracker."""

    url: str = ""
    step: int = -1  # the newest step that was sent
    sample: int = -1  # the step of the newest sample that was sent
    error: str = ""


def state_path(folder: Path, name: str) -> Path:
    """Return the path of a tracker's state."""
    return folder / f"tracker_{name}.json"


def read_state(folder: Path, name: str) -> TrackerState:
    """Return a tracker's state; a new one if it is missing or damaged."""
    try:
        return read_json(TrackerState, state_path(folder, name).read_bytes())
    except (OSError, ValueError):
        return TrackerState()
