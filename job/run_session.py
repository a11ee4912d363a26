"""One attempt of a run: its folder, its lock, its record, its heartbeat."""

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

# A step or an evaluation that takes longer than this without a sign is a hang, and the heart stops.
HANG_SECONDS = 1800.0

# The record is rewritten at most this often while training goes on.
RECORD_SECONDS = 2.0


class RunRefused(UserError):
    """This run can't be started so; the text says why and what to type."""


class OtherSettings(RunRefused):
    """It was begun with other ones: a mistake in what was typed, and nothing was begun."""

    status = ExitStatus.USAGE


def refuse_changes(folder: Path, recipe: Recipe) -> None:
    """Raise RunRefused where the run in ``folder`` is no training, OtherSettings where it was begun with ones that make it
    another run."""
    refuse_another_job(folder, "train")
    path = folder / "recipe.yaml"
    if not path.exists():
        return
    from job.recipe import load

    target, step = str(launch_facts().get("target") or "host"), max(steps(folder), default=0)
    why = other_recipe(folder.name, load(path), recipe, target, step)
    if why:
        raise OtherSettings(why)


def refuse_another_job(folder: Path, job: str) -> None:
    """Raise RunRefused where the run in ``folder`` is the work of another kind of job."""
    record = read_record(folder)
    if record is not None and (why := other_job(record, job)):
        raise RunRefused(why)


class RunSession:
    """This process's hold on a run's folder; only the main process has one.

    ``recipe`` is None for code of the user's, which may work for hours without a sign: its heart beats as long
    as the process lives.
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
            if attempt.ended is None:  # killed outright: it could not say so itself
                attempt.ended, attempt.reason = _last_sign(folder, attempt.started), "killed"
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
        self._progress = time.monotonic()
        self._tells_of_steps = recipe is not None
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._heart.start()

    def progress(self, force: bool = False, **values: Any) -> None:
        """Note values in the record; it is rewritten every few seconds, at once with ``force``."""
        self.is_alive()
        for key, value in values.items():
            setattr(self.record, key, value)
        if force or self._progress - self._written > RECORD_SECONDS:
            self._written = self._progress
            self.record.write(self.folder)

    def is_alive(self) -> None:
        """A sign of life, without a word in the record."""
        self._progress = time.monotonic()

    def end(self, status: RunStatus, reason: str) -> None:
        """The attempt is over."""
        self._ended.set()
        self._heart.join()
        self.attempt.ended = time.time()
        self.attempt.reason = reason
        self.attempt.last_step = self.record.step
        self.record.status = status
        try:
            self.record.write(self.folder)
        finally:
            self._lock.close()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            if not self._tells_of_steps or time.monotonic() - self._progress < HANG_SECONDS:
                # A volume that stumbles once must not end the thread: a live run would look dead.
                with suppress(OSError):
                    beat(self.folder)


def _lock(folder: Path) -> IO[str]:
    """Hold the run's folder; the kernel lets go when the process ends, however it ends."""
    beat(folder)
    file = (folder / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise RunRefused(
            f"run {folder.name} is at work now ({holder}); wait for it, stop it with "
            f"`runner stop {folder.name}`, or start another with --name NEW-NAME"
        ) from None
    except OSError:
        pass  # a network volume without locks; the launcher keeps a run to one container there
    with naming(folder / "lock"):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return file


def _last_sign(folder: Path, started: float) -> float:
    try:
        return max(started, (folder / "metrics.jsonl").stat().st_mtime)
    except OSError:
        return started


def _git() -> dict[str, Any]:
    def git(*words: str) -> str:
        # A container's user may not own the checkout; reading it is safe all the same.
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
