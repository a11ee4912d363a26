"""One attempt of a run: its lock, its record, its heartbeat."""

from __future__ import annotations

import fcntl
import os
import platform
import socket
import subprocess
import threading
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from job.compatibility import other_job, other_recipe
from job.exit_status import ExitStatus, UserError
from job.files import naming, write_atomically
from job.paths import CHECKOUT
from job.run_record import (
    HEARTBEAT_SECONDS,
    Attempt,
    RunRecord,
    RunStatus,
    beat,
    launch_facts,
    read_record,
)
from job.step_folders import remove_leftovers, steps

if TYPE_CHECKING:
    from job.recipe import Recipe

# A step or an evaluation that takes longer than this is a hang: the heartbeat stops.
HANG_TIMEOUT_S = 1800.0

# The record is rewritten at most this often during training.
RECORD_INTERVAL_S = 2.0


class RunRefused(UserError):
    """This run can't be started like this; the message says why and what to type."""


class OtherSettings(RunRefused):
    """The run was started with different settings; nothing was started."""

    status = ExitStatus.USAGE


def refuse_changes(folder: Path, recipe: Recipe) -> None:
    """Raise RunRefused if the run in ``folder`` is not a training.

    Raises OtherSettings if it was started with settings that would make it another run.
    """
    refuse_another_job(folder, "train")
    path = folder / "recipe.yaml"
    if not path.exists():
        return
    from job.recipe import load

    target, step = str(launch_facts().get("target") or "host"), max(steps(folder), default=0)
    why = other_recipe(folder.name, load(path), recipe, target, step)
    if why:
        raise OtherSettings(why)


def refuse_lost_records(folder: Path) -> None:
    """Raise RunRefused if the run has checkpoints but no record of what they were trained with."""
    lost = [name for name in ("recipe.yaml", "run.json") if not (folder / name).exists()]
    if not lost and read_record(folder) is None:
        lost = ["run.json"]
    if lost and steps(folder):
        raise RunRefused(
            f"run {folder.name} has checkpoints, but {' and '.join(lost)} in {folder} is missing "
            "or damaged, so its settings and dataset are unknown; restore the file, or start "
            "another run: --name NEW-NAME"
        )


def refuse_another_job(folder: Path, job: str) -> None:
    """Raise RunRefused if the run in ``folder`` belongs to another kind of job."""
    record = read_record(folder)
    if record is not None and (why := other_job(record, job)):
        raise RunRefused(why)


class RunSession:
    """This process's hold on a run's folder; only the main process has one.

    ``recipe`` is None for user code, which may work for hours without reporting progress: its
    heartbeat lasts as long as the process.
    """

    def __init__(self, folder: Path, recipe: Recipe | None, job: str, overrides: list[str]) -> None:
        if recipe is not None:
            refuse_changes(folder, recipe)
        else:
            refuse_another_job(folder, job)
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
                attempt.ended, attempt.reason = _last_activity(folder, attempt.started), "killed"
        launch = launch_facts()
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
        self._ended = threading.Event()
        self._heartbeat = threading.Thread(
            target=self._heartbeat_loop, name="heartbeat", daemon=True
        )
        self._heartbeat.start()

    def progress(self, force: bool = False, **values: Any) -> None:
        """Update the record; it is written every few seconds, or at once with ``force``."""
        self.touch()
        for key, value in values.items():
            setattr(self.record, key, value)
        if force or self._last_progress - self._written > RECORD_INTERVAL_S:
            self._written = self._last_progress
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
        try:
            self.record.write(self.folder)
        finally:
            self._lock.close()

    def _heartbeat_loop(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            if not self._reports_steps or time.monotonic() - self._last_progress < HANG_TIMEOUT_S:
                # One failed write must not end the thread: a live run would look lost.
                with suppress(OSError):
                    beat(self.folder)


def _lock(folder: Path) -> IO[str]:
    """Lock the run's folder; the kernel releases it when the process ends."""
    file = (folder / "lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise RunRefused(
            f"run {folder.name} is already active ({holder}); wait for it, stop it with "
            f"`runner stop {folder.name}`, or start another run with --name NEW-NAME"
        ) from None
    except OSError:
        pass  # a network volume without locks; there the launcher allows one container per run
    beat(folder)
    with naming(folder / "lock"):
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
    found = {"python": platform.python_version()}
    for package in ("torch", "numpy", "safetensors", "tiktoken"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
