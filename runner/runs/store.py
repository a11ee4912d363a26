"""Runs whose folders are on this machine: their state, and the runner's files in them."""

from __future__ import annotations

import json
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from job.exit_status import ExitStatus
from job.files import describe_os_error, read_file, write_atomically
from job.health import FRESH_HEARTBEAT_S
from job.run_record import (
    Attempt,
    RunRecord,
    RunStatus,
    heartbeat_age,
    is_held,
    is_run_name,
    parse_record,
    read_record,
)
from job.step_folders import LATEST, steps
from job.typed_json import convert, read_json
from runner.runs.attempts import LAUNCH_NAME, TAGS_NAME
from runner.system import is_container_id
from runner.target import (
    LaunchHandle,
    LocalVolume,
    RunInfo,
    VolumeFiles,
    options_from_json,
)

NO_RUNS = "no runs yet; `runner local` or `runner host` trains the first one"

HOST = "host"  # the target of a job that was started without the runner
DAMAGED_RECORD = "run.json is damaged"

EXIT_NAME = "exit_status"
SWEEP_RECORD = "sweep.json"  # in the folder of a sweep
LAUNCH_FILES = {LAUNCH_NAME, EXIT_NAME, "output.txt"}  # in a folder whose job never started

SIGNAL_BASE = 128  # signal n ends a process with exit status 128 + n
SIGKILL_STATUS = SIGNAL_BASE + 9


@dataclass(frozen=True)
class TagRecord:
    """The contents of ``tags.json``: all tags of the run at a time, in seconds since the epoch."""

    time: float = 0.0
    tags: tuple[str, ...] = ()


# Returns whether a launch is active, and its exit status if only the target knows it.
ProbeLaunch = Callable[[LaunchHandle], tuple[bool, int | None]]


def newest_step(folder: Path) -> int | None:
    """Return the step of the newest complete checkpoint, as the trainer finds it.

    None without one.
    """
    present = steps(folder)
    try:
        latest = int(read_file(folder / LATEST).decode().strip().removeprefix("step_"))
    except (OSError, ValueError):
        latest = None
    return latest if latest in present else present[-1] if present else None


def folders(checkpoints: Path) -> Iterator[Path]:
    """Yield the folders of the runs, sorted by name."""
    if checkpoints.is_dir():
        paths = (path for path in sorted(checkpoints.iterdir()) if path.name[0] != ".")
        yield from (path for path in paths if path.is_dir())


def states(
    checkpoints: Path, target: str, probe: ProbeLaunch, default: str = HOST
) -> Iterator[RunInfo]:
    """Yield every run whose last attempt was on ``target``.

    ``default`` is the target of a run whose records do not name one.
    """
    for folder in folders(checkpoints):
        state = _state_of(folder, target, probe, default)
        if state is not None:
            yield state


def state_named(
    run: str, checkpoints: Path, target: str, probe: ProbeLaunch, default: str = HOST
) -> RunInfo | None:
    """Return the state of one run; None if its last attempt was not on ``target``."""
    return _state_of(checkpoints / run, target, probe, default) if is_run_name(run) else None


def _state_of(folder: Path, target: str, probe: ProbeLaunch, default: str) -> RunInfo | None:
    record, launch = read_record(folder), read_launch(folder)
    problem = record_problem(folder) if record is None else ""
    if record is None and launch is None and not problem:
        return None
    attempt = record.attempts[-1] if record and record.attempts else None
    if _target_of(attempt, launch, default) != target:
        return None
    if launch is not None and not (launch.target == target and _started(launch, attempt)):
        launch = None
    is_alive, code = probe(launch) if launch is not None else (False, None)
    if record is None:
        record = RunRecord(folder.name, launch.job if launch else "train")
    elif not is_alive and record.status == RunStatus.RUNNING:
        # A launch that was refused may have replaced the launch of the process that holds the lock.
        is_alive = is_active_locally(folder) if launch is None else is_held(folder) is True
    if code is None:
        code = read_exit(folder)
    status = derive_status(record, attempt, launch, is_alive, code)
    reason = _reason(status, attempt, code)
    reasons = [*(earlier.reason for earlier in record.attempts[:-1]), reason]
    starts = [started.started for started in (attempt, launch) if started and started.started]
    requested_gpu = str(attempt.launch.get("gpu") or "") if attempt else ""
    return RunInfo(
        run=folder.name,
        job=launch.job if launch else record.job,
        target=target,
        status=status,
        alive=is_alive,
        gpu=requested_gpu or (attempt.device if attempt else None) or None,
        attempts=len(record.attempts),
        reason=problem or reason,
        end_reasons=tuple(end for end in reasons if end),
        started=max(starts, default=None),
        ended=attempt.ended if attempt else None,
        folder=str(folder),
        **recorded_values(record, launch, read_tags(folder)),
    )


def record_problem(folder: Path) -> str:
    """Return why the run.json in ``folder`` cannot be read; '' if it can, or does not exist."""
    if not is_run_name(folder.name):  # lost+found
        return ""
    try:
        record = parse_record(read_file(folder / "run.json"))
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return describe_os_error(error)
    return DAMAGED_RECORD if record is None else ""


def is_active_locally(folder: Path) -> bool:
    """Return True if a process of this machine works on the run: it holds the run's lock.

    The heartbeat decides only where locks do not work, as for containers on a Mac. Its time is
    wrong after the clock was set back.
    """
    held = is_held(folder)
    if held is not None:
        return held
    record = read_record(folder)
    is_running = record is not None and record.status == RunStatus.RUNNING
    return is_running and is_fresh(heartbeat_age(folder))


def recorded_values(
    record: RunRecord, launch: LaunchHandle | None, tags: bytes | None
) -> dict[str, Any]:
    """Return the fields of `RunInfo` that the record tells on every target.

    The launch knows the tags and the recipe before the job records it; ``tags`` is the content of
    tags.json.
    """
    metadata = launch.metadata if launch is not None else {}
    return {
        "step": record.step,
        "max_steps": record.max_steps,
        "loss": record.val_loss if record.val_loss is not None else record.train_loss,
        "estimated_seconds": record.estimate.get("seconds"),
        "expected_seconds": record.expected_seconds,
        "seconds": record.seconds or None,
        "result": record.result if record.job == "experiment" else {},
        "trackers": record.trackers,
        "tags": _tags(record, launch, tags),
        "recipe": record.recipe or str(metadata.get("recipe", "")),
    }


def _tags(record: RunRecord, launch: LaunchHandle | None, content: bytes | None) -> tuple[str, ...]:
    """Return the tags of `runner set --tag`, and those of all launches since then."""
    try:
        chosen = read_json(TagRecord, content or b"{}")
    except ValueError:  # damaged
        chosen = TagRecord()
    launches = [(attempt.started, attempt.launch) for attempt in record.attempts]
    launches += [(launch.started, launch.metadata)] if launch is not None else []
    newer = (metadata.get("tags") or () for started, metadata in launches if started > chosen.time)
    return tuple(dict.fromkeys((*chosen.tags, *(str(tag) for tags in newer for tag in tags))))


def derive_status(
    record: RunRecord,
    attempt: Attempt | None,
    launch: LaunchHandle | None,
    is_alive: bool,
    code: int | None,
) -> RunStatus:
    """Return the run's status.

    A record that says "running" of a process that is gone is overruled.
    """
    if is_alive:
        recorded = attempt is not None and (launch is None or attempt.started >= launch.started)
        return RunStatus.RUNNING if recorded else RunStatus.STARTING
    if record.status != RunStatus.RUNNING:
        return record.status
    match code:
        case None:
            return RunStatus.LOST
        case ExitStatus.DONE:
            return RunStatus.FINISHED
        case ExitStatus.UNFINISHED:
            return RunStatus.UNFINISHED
        case _:
            return RunStatus.LOST if code > SIGNAL_BASE else RunStatus.FAILED


def _reason(status: str, attempt: Attempt | None, code: int | None) -> str | None:
    """Return why the last attempt ended: the recorded reason, else the signal that killed it."""
    if (attempt is not None and attempt.reason) or status != RunStatus.LOST:
        return attempt.reason if attempt else None
    return f"killed by signal {code - SIGNAL_BASE}" if code and code != SIGKILL_STATUS else "killed"


def _started(launch: LaunchHandle, attempt: Attempt | None) -> bool:
    """Return True if ``launch`` started the last attempt.

    `docker compose up` starts some without one.
    """
    return attempt is None or bool(attempt.launch) or attempt.started < launch.started


def _target_of(attempt: Attempt | None, launch: LaunchHandle | None, default: str) -> str:
    """Return the target of the newest attempt or launch.

    A launch may end before it writes a record.
    """
    if attempt is not None and (launch is None or attempt.started >= launch.started):
        in_container = is_container_id(attempt.host)
        return str(attempt.launch.get("target") or ("local" if in_container else HOST))
    return launch.target if launch else default


def write_launch(folder: Path, launch: LaunchHandle) -> None:
    """Write ``launch.json`` into the run's folder."""
    write_atomically(folder / LAUNCH_NAME, launch_json(launch))


def launch_json(launch: LaunchHandle) -> str:
    """Return the content of ``launch.json``."""
    return json.dumps(asdict(launch), indent=2) + "\n"


def read_launch(folder: Path) -> LaunchHandle | None:
    """Return the last launch of the run in ``folder``; None if the runner never started it."""
    try:
        return parse_launch(read_file(folder / LAUNCH_NAME))
    except OSError:
        return None


def read_tags(folder: Path) -> bytes | None:
    """Return the content of ``tags.json`` in the run's folder; None without one."""
    try:
        return read_file(folder / TAGS_NAME)
    except OSError:
        return None


def parse_launch(text: str | bytes) -> LaunchHandle | None:
    """Parse the content of ``launch.json``; None if it is damaged."""
    try:
        tree = read_json(dict[str, Any], text)
        options = options_from_json(str(tree.get("target")), tree.pop("target_options", None) or {})
        handle: LaunchHandle = convert(tree, LaunchHandle)
        return replace(handle, target_options=options)
    except (ValueError, TypeError, AttributeError):
        return None


def prepare_folder(folder: Path) -> None:
    """Make the run's folder for a launch, and forget the exit status of the last one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EXIT_NAME).unlink(missing_ok=True)


def write_exit(folder: Path, code: int) -> None:
    """Write the exit status of the last launch.

    A full disk is ignored, and the run counts as lost.
    """
    with suppress(OSError):
        write_atomically(folder / EXIT_NAME, f"{code}\n")


def read_exit(folder: Path) -> int | None:
    """Return the exit status of the last launch.

    None while it runs, and if the runner was killed too.
    """
    try:
        return int(read_file(folder / EXIT_NAME))
    except (OSError, ValueError):
        return None


SIGTERM_STATUS = 128 + signal.SIGTERM  # the stop came before the job handles signals


def discard_if_not_started(folder: Path, code: int) -> bool:
    """Remove the folder of a job that failed before it wrote anything, so that its name is free
    again.

    Returns True if the folder was removed.
    """
    codes = (ExitStatus.ERROR, ExitStatus.USAGE, ExitStatus.INTERRUPTED, SIGTERM_STATUS)
    if code not in codes or not folder.is_dir():
        return False
    if {path.name for path in folder.iterdir()} - {LAUNCH_NAME, EXIT_NAME}:
        return False
    shutil.rmtree(folder)
    return True


def is_fresh(age: float | None) -> bool:
    """Return True if a heartbeat of this age, in seconds, belongs to an active run.

    None means a missing one.
    """
    return age is not None and age < FRESH_HEARTBEAT_S


class PulledRuns(ABC):
    """A `RunSource` of the copies in ``checkpoints`` that were pulled from ``target``."""

    name = "copy"
    poll_interval_s = 1.0

    def __init__(self, checkpoints: Path, target: str) -> None:
        self.checkpoints, self.target = checkpoints, target

    @abstractmethod
    def state(self, run: str) -> RunInfo | None:
        """Return the state of the run when it was pulled; None if it was not pulled."""

    def runs(self) -> Iterable[RunInfo]:
        """Return every run that was pulled."""
        states = (self.state(folder.name) for folder in folders(self.checkpoints))
        return [state for state in states if state is not None]

    def launched(self, run: str) -> LaunchHandle | None:
        """Return the launch that was pulled with the run."""
        return read_launch(self.checkpoints / run)

    def output(self, run: str, lines: int) -> list[str]:
        """Return []: output outside the log is not pulled."""
        return []

    def files(self, volume: str) -> VolumeFiles:
        """Return the checkpoints volume of this machine."""
        return LocalVolume(self.checkpoints)
