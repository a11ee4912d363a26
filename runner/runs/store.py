"""The runs whose folders are on this machine: how each stands, from its record and what is alive."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path

from job.exit_status import ExitStatus
from job.files import write_atomically
from job.health import FRESH_SECONDS
from job.run_record import (
    RUN_NAME,
    Attempt,
    RunRecord,
    RunStatus,
    heartbeat_age,
    parse_record,
    read_record,
)
from job.step_folders import LATEST, steps
from runner.runs.endings import SIGKILL_STATUS
from runner.target import LaunchHandle, RunInfo, VolumeFiles, options_from_json
from runner.targets.docker import is_container_id

SIGNALS = 128  # an exit status of 128 + n: signal n ended it

# Whether what was started lives, and the exit status where only the target knows it.
Look = Callable[[LaunchHandle], tuple[bool, int | None]]


def newest_step(folder: Path) -> int | None:
    """The step of the newest complete checkpoint, which the file ``latest`` names; where it names none that is there, as
    the trainer finds it: by the folders. None without one."""
    there = steps(folder)
    try:
        named = int((folder / LATEST).read_text().strip().removeprefix("step_"))
    except (OSError, ValueError):
        named = None
    return named if named in there else there[-1] if there else None


def folders(checkpoints: Path) -> Iterator[Path]:
    """The folders of the runs."""
    if checkpoints.is_dir():
        yield from (path for path in sorted(checkpoints.iterdir()) if path.is_dir())


def states(checkpoints: Path, target: str, look: Look) -> Iterator[RunInfo]:
    """Every run whose last attempt was on ``target``."""
    for folder in folders(checkpoints):
        state = state_of(folder, target, look)
        if state is not None:
            yield state


def state_named(run: str, checkpoints: Path, target: str, look: Look) -> RunInfo | None:
    """How the run of that name stands; only its own folder is read."""
    return state_of(checkpoints / run, target, look) if RUN_NAME.match(run) else None


def state_of(folder: Path, target: str, look: Look) -> RunInfo | None:
    """How the run in ``folder`` stands; None where it is no run, or was last on another target."""
    record, launch = read_record(folder), read_launch(folder)
    if record is None and launch is None:
        return None
    attempt = record.attempts[-1] if record and record.attempts else None
    if _target_of(attempt, launch) != target:
        return None
    ours = (
        launch
        if launch is not None and launch.target == target and _is_of(launch, attempt)
        else None
    )
    lives, code = look(ours) if ours is not None else (False, None)
    if ours is None and record is not None and record.status == RunStatus.RUNNING:
        lives = is_fresh(heartbeat_age(folder))
    if code is None:
        code = read_exit(folder)
    return _state(folder, target, record, attempt, ours, lives, code)


def _state(
    folder: Path,
    target: str,
    record: RunRecord | None,
    attempt: Attempt | None,
    launch: LaunchHandle | None,
    lives: bool,
    code: int | None,
) -> RunInfo:
    if record is None:
        record = RunRecord(name=folder.name, job=launch.job if launch else "train")
    loss = record.val_loss if record.val_loss is not None else record.train_loss
    asked = attempt.launch.get("gpu") if attempt else None
    status = judge(record, attempt, launch, lives, code)
    reason = _reason(status, attempt, code)
    began = max(
        (a for a in (attempt and attempt.started, launch and launch.started) if a), default=None
    )
    return RunInfo(
        run=folder.name,
        job=launch.job if launch else record.job,
        target=target,
        status=status,
        alive=lives,
        gpu=asked or (attempt.device if attempt else None) or None,
        step=record.step,
        max_steps=record.max_steps,
        loss=loss,
        attempts=len(record.attempts),
        reason=reason,
        ends=tuple(end for end in (*(a.reason for a in record.attempts[:-1]), reason) if end),
        started=began,
        ended=attempt.ended if attempt else None,
        folder=str(folder),
        estimated_seconds=record.estimate.get("seconds"),
        expected_seconds=record.expected_seconds,
        seconds=record.seconds or None,
        result=record.result if record.job == "experiment" else {},
    )


def judge(
    record: RunRecord,
    attempt: Attempt | None,
    launch: LaunchHandle | None,
    lives: bool,
    code: int | None,
) -> RunStatus:
    """One word for how a run stands: a record that still says running of what is gone is not believed."""
    if lives:
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
            return RunStatus.LOST if code > SIGNALS else RunStatus.FAILED


def _reason(status: str, attempt: Attempt | None, code: int | None) -> str | None:
    """Why the last attempt ended: its own word, else what is known of one that could say none."""
    if (attempt is not None and attempt.reason) or status != RunStatus.LOST:
        return attempt.reason if attempt else None
    return f"killed by signal {code - SIGNALS}" if code and code != SIGKILL_STATUS else "killed"


def _is_of(launch: LaunchHandle, attempt: Attempt | None) -> bool:
    """Whether the last attempt is the one that the runner launched: one of `docker compose up` says nothing
    of a launch, and has its heartbeat alone to be known by."""
    return attempt is None or bool(attempt.launch) or attempt.started < launch.started


def _target_of(attempt: Attempt | None, launch: LaunchHandle | None) -> str:
    """Where the run was last: the record knows of starts without the runner, the launch of those that
    have not come to write a record."""
    if attempt is not None and (launch is None or attempt.started >= launch.started):
        return str(
            attempt.launch.get("target") or ("local" if is_container_id(attempt.host) else "host")
        )
    return launch.target if launch else "host"


NAME = "launch.json"

EXIT = "exit_status"


def write_launch(folder: Path, started: LaunchHandle) -> None:
    """Note ``started`` in the run's folder."""
    write_atomically(folder / NAME, dumps(started))


def dumps(started: LaunchHandle) -> str:
    """As the file holds it."""
    return json.dumps(asdict(started), indent=2) + "\n"


def read_launch(folder: Path) -> LaunchHandle | None:
    """What was started last; None where the runner started nothing."""
    try:
        return parse_launch((folder / NAME).read_text())
    except (OSError, ValueError):
        return None


def parse_launch(text: str | bytes) -> LaunchHandle | None:
    """What the text of a ``launch.json`` says; None where it can't be read as one."""
    try:
        tree = json.loads(text)
        names = {field.name for field in fields(LaunchHandle)}
        options = options_from_json(str(tree.get("target")), tree.get("target_options") or {})
        tree["target_options"] = options
        return LaunchHandle(**{key: value for key, value in tree.items() if key in names})
    except (ValueError, TypeError, AttributeError):
        return None


def make_folder(folder: Path) -> None:
    """Before a start: the run's folder, without how the one before ended."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EXIT).unlink(missing_ok=True)


def note_exit(folder: Path, code: int) -> None:
    """Note the exit status of what was started last, where the disk has room for that: the run is `lost` without it."""
    with suppress(OSError):
        write_atomically(folder / EXIT, f"{code}\n")


def read_exit(folder: Path) -> int | None:
    """The exit status of what was started last; None while it runs, and where nobody saw it end."""
    try:
        return int((folder / EXIT).read_text())
    except (OSError, ValueError):
        return None


def forget_unbegun(folder: Path, code: int) -> bool:
    """Remove the folder where a job ended with ``code`` for a mistake, or by a Ctrl-C, before it wrote anything into it:
    the same name begins anew. Whether that was so: a folder that somebody else deleted may have held a run."""
    ends = (ExitStatus.ERROR, ExitStatus.USAGE, ExitStatus.INTERRUPTED)
    unbegun = (
        code in ends
        and folder.is_dir()
        and {path.name for path in folder.iterdir()} <= {NAME, EXIT}
    )
    if unbegun:
        shutil.rmtree(folder)
    return unbegun


def is_fresh(age: float | None) -> bool:
    """``age`` in seconds; None for a run that has none."""
    return age is not None and age < FRESH_SECONDS


def record_of(files: VolumeFiles | None, run: str) -> RunRecord | None:
    """The run's record on a checkpoints volume; None where there is none."""
    if files is None:
        return None
    try:
        return parse_record(files.read(f"{run}/run.json"))
    except (FileNotFoundError, NotADirectoryError):
        return None


def step_of(files: VolumeFiles, run: str) -> int | None:
    """The step of the run's newest checkpoint, which the file ``latest`` names; None where there is none."""
    try:
        named = files.read(f"{run}/{LATEST}").decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    number = named.strip().removeprefix("step_")
    return int(number) if number.isdigit() else None


def is_ready(data: VolumeFiles, dataset: str) -> bool | None:
    """Whether the dataset is complete; None for shards of another origin, which have no meta.json."""
    try:
        names = [entry.path.rpartition("/")[2] for entry in data.entries(dataset)]
    except (FileNotFoundError, NotADirectoryError):
        return False
    if "meta.json" in names:
        return True
    return None if any("train" in name and name.endswith(".bin") for name in names) else False
