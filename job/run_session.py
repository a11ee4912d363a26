"""One attempt of a run: its lock, its record, its heartbeat."""

from __future__ import annotations

import fcntl
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from job.compatibility import job_mismatch, recipe_mismatch
from job.exit_status import ExitStatus, UserError
from job.files import name_in_errors, write_atomically
from job.notify import Notifier
from job.paths import CHECKOUT, VolumePaths
from job.run_record import (
    HEARTBEAT_INTERVAL_S,
    Attempt,
    EndReason,
    RunRecord,
    RunStatus,
    invalid_run_name,
    is_run_name,
    launch_metadata,
    read_record,
    recorded_dataset,
    touch_heartbeat,
)
from job.schedules import common_sequences
from job.step_folders import remove_leftovers, steps
from job.trackers.process import TrackerProcesses

if TYPE_CHECKING:
    from job.recipe import Recipe


# A step or an evaluation that takes longer than this is a hang: the heartbeat stops.
HANG_TIMEOUT_S = 1800.0

# The record is rewritten at most this often during training.
RECORD_INTERVAL_S = 2.0


class RunRefused(UserError):
    """This run can't be started like this; the message says why and what to type."""


class SettingsMismatch(RunRefused):
    """The run was started with different settings; nothing was started."""

    status = ExitStatus.USAGE


def refuse_changes(folder: Path, recipe: Recipe) -> None:
    """Raise RunRefused if the run in ``folder`` is not a training run.

    Raises SettingsMismatch if it was started with settings that would make it a different run.
    """
    refuse_different_job(folder, "train")
    path = folder / "recipe.yaml"
    if not path.exists():
        return
    from job.recipe import load

    target, step = str(launch_metadata().get("target") or "host"), max(steps(folder), default=0)
    problem = recipe_mismatch(folder.name, load(path), recipe, target, step)
    if problem:
        raise SettingsMismatch(problem)


def refuse_lost_records(folder: Path) -> None:
    """Raise RunRefused if the run has checkpoints but no record of what they were trained with."""
    lost = [] if (folder / "recipe.yaml").exists() else ["recipe.yaml"]
    if read_record(folder) is None and not recorded_dataset(folder):
        lost.append("run.json")
    if lost and steps(folder):
        are, them = ("is", "the file") if len(lost) == 1 else ("are", "the files")
        raise RunRefused(
            f"run '{folder.name}' has checkpoints, but {' and '.join(lost)} in {folder} {are} "
            f"missing or damaged, so its settings and dataset are unknown; restore {them}, or "
            "start a new run: --name NEW-NAME"
        )


def refuse_different_job(folder: Path, job: str) -> None:
    """Raise RunRefused if the run in ``folder`` belongs, or may belong, to a different kind of job.

    Without a readable record, a checkpoint that names its dataset shows a training run.
    """
    record = read_record(folder)
    is_training = job == "train" and bool(recorded_dataset(folder))
    # lexists: `exists` is False for a link to itself.
    if record is None and os.path.lexists(folder / "run.json") and not is_training:
        raise RunRefused(
            f"{folder / 'run.json'} is damaged, so the run's job, dataset and attempts are "
            "unknown; restore the file, or start a new run: --name NEW-NAME"
        )
    if record is not None and (problem := job_mismatch(record, job)):
        raise RunRefused(problem)


class RunSession:
    """The lock, record and heartbeat of one attempt; only the main process has them.

    ``recipe`` is None for user code, which may work for hours without reporting progress: its
    heartbeat lasts as long as the process.
    """

    def __init__(self, folder: Path, recipe: Recipe | None, job: str, overrides: list[str]) -> None:
        if recipe is not None:
            refuse_changes(folder, recipe)
        else:
            refuse_different_job(folder, job)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = _lock(folder)
        remove_leftovers(folder)
        if recipe is not None:
            write_atomically(folder / "recipe.yaml", recipe.to_yaml())
        self.record = read_record(folder) or RunRecord(
            name=folder.name, job=job, created=time.time()
        )
        for attempt in self.record.attempts:
            if attempt.ended is None:  # killed before it could record its end
                attempt.ended = _last_activity(folder, attempt.started)
                attempt.reason = EndReason.KILLED
        launch = launch_metadata()
        self._notifier = Notifier(folder.name, folder)
        if launch.get("sweep"):  # the sweep itself reports once, when all trials are done
            self._notifier.silence()
        self.attempt = Attempt(
            started=time.time(),
            host=socket.gethostname(),
            launch=launch,
            first_step=self.record.step,
        )
        self.record.attempts.append(self.attempt)
        self.record.status = RunStatus.RUNNING
        if recipe is not None:
            self.record.max_steps = recipe.train.max_steps
        self.record.overrides = overrides
        self.record.git = launch.get("git") or ({} if recipe is None else _git())
        self.record.versions = _versions()
        self.record.write(folder)
        self._written = time.monotonic()
        self._last_progress = time.monotonic()
        self._reports_steps = recipe is not None
        self._trackers: TrackerProcesses | None = None
        self._ended = threading.Event()
        self._heartbeat = threading.Thread(
            target=self._heartbeat_loop, name="heartbeat", daemon=True
        )
        self._heartbeat.start()

    def describe(self, device: str, world_size: int, first_step: int) -> None:
        """Record the attempt's device, its processes and the step it resumes from."""
        self.attempt.device, self.attempt.world_size = device, world_size
        self.attempt.first_step = first_step

    def start_trackers(
        self,
        projects: Mapping[str, str],
        report: Callable[[str], None],
        tags: Sequence[str] = (),
        upload: bool = False,
    ) -> None:
        """Start a process for each tracker in ``projects``; it ends with the attempt."""
        self._trackers = TrackerProcesses(self.folder, projects, report, tags, upload)

    def progress(self, force: bool = False, **values: Any) -> None:
        """Update the record; it is written every few seconds, or at once with ``force``."""
        self.touch()
        for key, value in values.items():
            setattr(self.record, key, value)
        if force or self._last_progress - self._written > RECORD_INTERVAL_S:
            self._written = self._last_progress
            self._write()

    def _write(self) -> None:
        if self._trackers is not None:
            self.record.trackers |= self._trackers.urls()
        self.record.write(self.folder)

    def touch(self) -> None:
        """Report progress without changing the record."""
        self._last_progress = time.monotonic()

    def end(self, status: RunStatus, reason: str) -> None:
        """End the attempt."""
        self._ended.set()
        self._heartbeat.join()
        self.attempt.ended = time.time()
        self.attempt.reason = reason
        self.attempt.last_step = self.record.step
        self.record.status = status
        message = self._notifier.send(_event(status, reason))
        self._notifier.silence()
        try:
            self._write()
            if self._trackers is not None:  # they read the status
                self._trackers.close(is_finished=status == RunStatus.FINISHED)
                self._write()
        finally:
            self._lock.close()
            if message is not None and (problem := message.wait()):
                print(problem, file=sys.stderr, flush=True)

    def _heartbeat_loop(self) -> None:
        while not self._ended.wait(HEARTBEAT_INTERVAL_S):
            if not self._reports_steps or time.monotonic() - self._last_progress < HANG_TIMEOUT_S:
                # One failed write must not end the thread: a live run would look lost.
                with suppress(OSError):
                    touch_heartbeat(self.folder)


def _event(status: RunStatus, reason: str) -> str:
    """Return the end of an attempt for a notification."""
    if status == RunStatus.UNFINISHED:
        return f"stopped: {reason}; it has a checkpoint to resume from"
    return str(status) if reason == status else f"{status}: {reason}"


def _lock(folder: Path) -> IO[str]:
    """Lock the run's folder; the kernel releases it when the process ends."""
    file = (folder / "lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise RunRefused(
            f"run '{folder.name}' is already active ({holder}); wait for it, stop it with "
            f"`runner stop {folder.name}`, or start a new run with --name NEW-NAME"
        ) from None
    except OSError:
        pass  # a network volume without locks; there the launcher allows one container per run
    touch_heartbeat(folder)
    with name_in_errors(folder / "lock"):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return file


def _last_activity(folder: Path, started: float) -> float:
    try:
        return max(started, (folder / "metrics.jsonl").stat().st_mtime)
    except OSError:
        return started


def _git() -> dict[str, Any]:
    def git(*words: str) -> str:
        # A container's user may not own the checkout; reading it is safe.
        command = ["git", "-c", f"safe.directory={CHECKOUT}", "-C", str(CHECKOUT), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "-uno")),
        }
    except (OSError, subprocess.SubprocessError):
        return {}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("torch", "numpy", "safetensors", "tiktoken"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def run_folder(recipe: Recipe, name: str | None, locations: VolumePaths) -> Path:
    """Return the folder of run ``name``, by default the recipe's name."""
    name = name or recipe.name
    if not is_run_name(name):
        raise recipe.mistake("name", invalid_run_name(name))
    return locations.run(name)


def refuse_kernels(recipe: Recipe, device: str, has_float8: bool) -> None:
    """Raise RecipeError if ``device`` (cuda, mps or cpu) lacks a feature that the recipe needs."""
    if recipe.train.fp8 != "none" and not has_float8:
        advice = "needs an NVIDIA GPU of compute capability 8.9, as an H100; use fp8=none"
        raise recipe.mistake("train.fp8", f"fp8={recipe.train.fp8} {advice}")
    kernel = recipe.train.attention
    if kernel != "auto" and device != "cuda":
        raise recipe.mistake("train.attention", f"{kernel} is a GPU kernel; on {device} use auto")


def dtype_warnings(recipe: Recipe, has_bfloat16: bool) -> list[str]:
    """Return a warning if the device emulates the recipe's number format.

    On a CPU with AVX2 `shakespeare_char_cpu` trains 475 tokens a second in bfloat16, 13,300 in
    float32.
    """
    if recipe.train.dtype != "bfloat16" or has_bfloat16:
        return []
    return [
        "warning: dtype=bfloat16: this device has no known bfloat16 units, so this job can take "
        "30 times as long as in float32. Use dtype=auto"
    ]


def check_run(recipe: Recipe, folder: Path, processes: int) -> RunRecord | None:
    """Return the run's record if the run is finished, else None.

    Raises RunRefused if the run in ``folder`` is another one, and RecipeError if a step can't be
    divided among ``processes``.
    """
    refuse_changes(folder, recipe)
    record = read_record(folder)
    refuse_lost_records(folder)
    is_finished = record is not None and record.status == RunStatus.FINISHED
    if record is not None and is_finished and record.step >= recipe.train.max_steps:
        return record
    if (sequences := common_sequences(recipe)) % processes:
        raise recipe.mistake(
            "train.global_batch_tokens",
            f"a step of {sequences} sequences can't be divided among {processes} processes",
        )
    return None
