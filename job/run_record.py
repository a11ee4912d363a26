"""The record of a run, ``run.json``. No torch: the runner reads it too.

A run is one named execution; each start is an attempt. The record is rewritten atomically at each
change.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from job.exit_status import ExitStatus, UserError
from job.files import open_at_once, read_file, write_atomically
from job.format import json_text, runner_command
from job.step_folders import step_folder, steps
from job.typed_json import read_json


class RunStatus(StrEnum):
    """The state of a run. An observer derives QUEUED, STARTING and LOST; a record has the rest."""

    QUEUED = "queued"  # it waits for GPUs that other runs use
    STARTING = "starting"
    RUNNING = "running"
    FINISHED = "finished"
    UNFINISHED = "unfinished"  # stopped on request or at a limit: it has a checkpoint to resume
    FAILED = "failed"
    LOST = "lost"  # ended without a record: killed, or the machine went down


class EndReason(StrEnum):
    """The reason for an attempt's end; off Modal also a signal, an exit status or an error."""

    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    KILLED = "killed"  # the process or container disappeared without a signal
    ATTEMPT_TIMEOUT = "attempt-timeout"  # Modal's limit for one attempt; another attempt follows
    RUN_TIMEOUT = "run-timeout"  # the run's --timeout; no attempt follows
    BUDGET = "budget"  # the run's --max-cost
    STALLED = "stalled"
    IDLE_GPU = "idle-gpu"
    NODE_LOST = "node-lost"  # another machine of the run ended; another attempt follows
    DUPLICATE_CALL = "duplicate-call"  # a different call already runs the job; not in a record


REQUEST_NAME = "request.json"  # of `runner set`, see job/live_request.py

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def is_run_name(name: str) -> bool:
    """Return True if the name can be a folder on every target."""
    return RUN_NAME.fullmatch(name) is not None


def invalid_run_name(name: str) -> str:
    """Return the error for a name that can't be a folder on every target."""
    return (
        f"{name!r} is not a valid run name; use up to 100 letters, digits, '.', '_' and '-', "
        "starting with a letter or a digit"
    )


# The trainer touches the heartbeat at least this often, also while it compiles or evaluates.
HEARTBEAT_INTERVAL_S = 5.0


class NoSuchRun(UserError):
    """The run does not exist or has no checkpoint; the message says what to type."""

    status = ExitStatus.NOT_FOUND


@dataclass
class Attempt:
    """One start of a run. Times are seconds since the epoch."""

    started: float
    ended: float | None = None
    first_step: int = 0  # the step that it resumed from
    last_step: int | None = None
    reason: str | None = None  # why it ended: finished, SIGTERM, an error message
    host: str = ""
    device: str = ""
    world_size: int = 1
    launch: dict[str, Any] = field(default_factory=dict)  # from the runner: target, GPU, image


@dataclass
class RunRecord:
    """The contents of ``run.json``."""

    name: str
    job: str = "train"
    status: RunStatus = RunStatus.RUNNING
    created: float = 0.0
    step: int = 0
    max_steps: int = 0
    train_loss: float | None = None
    val_loss: float | None = None
    best_val_loss: float | None = None
    parameters: int | None = None
    tokens: int = 0
    train_seconds: float = 0.0  # in training steps, over all attempts
    seconds: float = 0.0  # over all attempts, with evaluations and checkpoints
    # Estimates of the final ``seconds``: after 50 steps of the first attempt, and the newest.
    expected_seconds: float | None = None
    expected_seconds_now: float | None = None
    overrides: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)  # of the user's, where the job is one
    dataset: dict[str, Any] = field(default_factory=dict)  # source, train_tokens, fingerprint
    git: dict[str, Any] = field(default_factory=dict)  # commit, dirty
    versions: dict[str, str] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    request: dict[str, Any] = field(default_factory=dict)  # newest of `runner set`: id, step, error
    trackers: dict[str, str] = field(default_factory=dict)  # the run's page by tracker
    result: dict[str, Any] = field(default_factory=dict)
    # Of an experiment's train(), defaults too.
    arguments: dict[str, Any] = field(default_factory=dict)
    file: dict[str, str] = field(default_factory=dict)  # of an experiment: path, sha256

    @property
    def estimate(self) -> dict[str, float]:
        """Return the first launch's estimate in ``seconds`` and ``usd``; empty if it made none."""
        estimate = self.attempts[0].launch.get("estimate") if self.attempts else None
        items = estimate.items() if isinstance(estimate, dict) else ()
        return {name: value for name, value in items if isinstance(value, int | float)}

    @property
    def recipe(self) -> str:
        """Return the name of the recipe; '' for other jobs."""
        return str(self.attempts[-1].launch.get("recipe") or "") if self.attempts else ""

    def write(self, folder: Path) -> None:
        """Replace ``run.json`` in ``folder``."""
        write_atomically(folder / "run.json", json_text(asdict(self), indent=2) + "\n")


def read_record(folder: Path) -> RunRecord | None:
    """Return the record in ``folder``; None if it is missing or unreadable."""
    try:
        return parse_record(read_file(folder / "run.json"))
    except (OSError, ValueError):
        return None


def describe_end(run: str, record: RunRecord) -> str:
    """Return ``run 'tiny' is already finished: 60 steps, validation loss 2.5000``."""
    val = f", validation loss {record.val_loss:.4f}" if record.val_loss is not None else ""
    return f"run '{run}' is already finished: {record.step} steps{val}"


def recorded_dataset(folder: Path) -> dict[str, Any]:
    """Return the identity of the dataset that the run learned; {} if it is unknown.

    A power loss may destroy run.json; then the newest checkpoint has the identity.
    """
    record = read_record(folder)
    if record is not None:
        return record.dataset
    for step in reversed(steps(folder)):
        try:
            dataset = json.loads(read_file(step_folder(folder, step) / "state.json"))["dataset"]
        except (OSError, ValueError, LookupError, TypeError):
            continue
        if isinstance(dataset, dict) and dataset:
            return dataset
    return {}


def parse_record(text: str | bytes) -> RunRecord | None:
    """Parse the text of a ``run.json``; None if it is not a record."""
    try:
        return read_json(RunRecord, text)
    except ValueError:
        return None


def all_runs(checkpoints: Path) -> Iterator[tuple[Path, RunRecord]]:
    """Yield every run in the volume, newest first."""
    runs = []
    if checkpoints.is_dir():
        for folder in checkpoints.iterdir():
            record = read_record(folder)
            if record is not None:
                latest = record.attempts[-1].started if record.attempts else record.created
                runs.append((latest, folder, record))
    for _, folder, record in sorted(runs, key=lambda item: item[0], reverse=True):
        yield folder, record


def find_run(name: str | None, checkpoints: Path) -> Path:
    """Return the folder of the trained run ``name``, or of the newest. Raises NoSuchRun."""
    folders = [folder for folder, _ in all_runs(checkpoints)]
    if name is None:
        newest = next((folder for folder in folders if (folder / "recipe.yaml").exists()), None)
        if newest is None:
            raise NoSuchRun(f"no trained run in {checkpoints}; train one: runner host train")
        return newest
    if not (checkpoints / name / "recipe.yaml").exists():
        if (record := read_record(checkpoints / name)) is not None and record.job == "train":
            raise NoSuchRun(
                f"run '{name}' has no recipe.yaml in {checkpoints / name}; restore the file, "
                f"or train a new run: runner host train --name {name}-2"
            )
        if record is not None:
            raise NoSuchRun(f"run '{name}' has job {record.job} and is not a training run")
        names = ", ".join(folder.name for folder in folders[:10])
        others = f"; runs: {names}" if names else " (no runs yet)"
        raise NoSuchRun(f"no run '{name}' in {checkpoints}{others}")
    return checkpoints / name


def no_checkpoint_error(folder: Path) -> NoSuchRun:
    """Return the error for a run without a checkpoint."""
    record = read_record(folder)
    if steps(folder):
        return NoSuchRun(
            f"every checkpoint of run '{folder.name}' is damaged; restore the files in {folder}, "
            f"or train it again: {runner_command('host')} {folder}/recipe.yaml "
            f"--name {folder.name}-2"
        )
    if record is not None and record.status == RunStatus.FINISHED:
        return NoSuchRun(
            deleted_checkpoints_message(folder.name, "host", str(folder / "recipe.yaml"))
        )
    return NoSuchRun(
        f"run '{folder.name}' has no checkpoint yet; it writes one every checkpoint_every steps"
    )


def deleted_checkpoints_message(run: str, target: str, recipe: str) -> str:
    """Return the message for a finished run whose checkpoints were deleted."""
    return (
        f"run '{run}' is finished, but its checkpoints were deleted; to train it again: "
        f"{runner_command(target)} {recipe} --name {run}-2"
    )


def touch_heartbeat(folder: Path) -> None:
    """Touch the run's heartbeat."""
    (folder / "heartbeat").touch()


def heartbeat_age(folder: Path) -> float | None:
    """Return the seconds since the run's last heartbeat; None if it never had one."""
    try:
        return max(0.0, time.time() - (folder / "heartbeat").stat().st_mtime)
    except OSError:
        return None


def is_held(folder: Path) -> bool | None:
    """Return True if a process holds the run's lock, also in a container.

    None if that is unknown: no process created one, or containers run in a virtual machine (macOS).
    """
    if sys.platform != "linux":
        return None
    try:
        with open(folder / "lock", opener=open_at_once) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def lock_holder(folder: Path) -> int | None:
    """Return the process of this machine that holds the run's lock; None without one."""
    if not is_held(folder):
        return None
    words = read_file(folder / "lock").decode(errors="replace").split()
    is_here = len(words) == 4 and words[3] == socket.gethostname() and words[1].isdecimal()
    return int(words[1]) if is_here else None


def launch_metadata() -> dict[str, Any]:
    """Return the runner's metadata of this launch (target, GPU, git); {} without a runner."""
    try:
        metadata = json.loads(os.environ.get("RUN_LAUNCH") or "{}")
    except ValueError:
        return {}
    return metadata if isinstance(metadata, dict) else {}
