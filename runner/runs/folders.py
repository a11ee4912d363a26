"""The runs whose folders are on this machine: how each stands, from its record and what is alive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from job.exit_status import ExitStatus
from job.runs import RUN_NAME, Attempt, RunRecord, heartbeat_age, read_record
from job.step_folders import LATEST, steps
from runner.docker.containers import is_container_id
from runner.outcome import SIGKILL_STATUS
from runner.runs.heartbeat import is_fresh
from runner.runs.launch_record import read_exit, read_launch
from runner.targets.protocol import RunState, Started

SIGNALS = 128  # an exit status of 128 + n: signal n ended it

# Whether what was started lives, and the exit status where only the target knows it.
Look = Callable[[Started], tuple[bool, int | None]]


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


def states(checkpoints: Path, target: str, look: Look) -> Iterator[RunState]:
    """Every run whose last attempt was on ``target``."""
    for folder in folders(checkpoints):
        state = state_of(folder, target, look)
        if state is not None:
            yield state


def state_named(run: str, checkpoints: Path, target: str, look: Look) -> RunState | None:
    """How the run of that name stands; only its own folder is read."""
    return state_of(checkpoints / run, target, look) if RUN_NAME.match(run) else None


def state_of(folder: Path, target: str, look: Look) -> RunState | None:
    """How the run in ``folder`` stands; None where it is no run, or was last on another target."""
    record, launch = read_record(folder), read_launch(folder)
    if record is None and launch is None:
        return None
    attempt = record.attempts[-1] if record and record.attempts else None
    if _target_of(attempt, launch) != target:
        return None
    ours = launch if launch is not None and launch.target == target and _is_of(launch, attempt) else None
    lives, code = look(ours) if ours is not None else (False, None)
    if ours is None and record is not None and record.status == "running":
        lives = is_fresh(heartbeat_age(folder))
    if code is None:
        code = read_exit(folder)
    return _state(folder, target, record, attempt, ours, lives, code)


def _state(
    folder: Path,
    target: str,
    record: RunRecord | None,
    attempt: Attempt | None,
    launch: Started | None,
    lives: bool,
    code: int | None,
) -> RunState:
    if record is None:
        record = RunRecord(name=folder.name, job=launch.job if launch else "train")
    loss = record.val_loss if record.val_loss is not None else record.train_loss
    asked = attempt.launch.get("gpu") if attempt else None
    status = judge(record, attempt, launch, lives, code)
    reason = _reason(status, attempt, code)
    began = max((a for a in (attempt and attempt.started, launch and launch.started) if a), default=None)
    return RunState(
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
    record: RunRecord, attempt: Attempt | None, launch: Started | None, lives: bool, code: int | None
) -> str:
    """One word for how a run stands: a record that still says running of what is gone is not believed."""
    if lives:
        recorded = attempt is not None and (launch is None or attempt.started >= launch.started)
        return "running" if recorded else "starting"
    if record.status != "running":
        return record.status
    match code:
        case None:
            return "dead"
        case ExitStatus.DONE:
            return "finished"
        case ExitStatus.UNFINISHED:
            return "unfinished"
        case _:
            return "dead" if code > SIGNALS else "failed"


def _reason(status: str, attempt: Attempt | None, code: int | None) -> str | None:
    """Why the last attempt ended: its own word, else what is known of one that could say none."""
    if (attempt is not None and attempt.reason) or status != "dead":
        return attempt.reason if attempt else None
    return f"killed by signal {code - SIGNALS}" if code and code != SIGKILL_STATUS else "killed"


def _is_of(launch: Started, attempt: Attempt | None) -> bool:
    """Whether the last attempt is the one that the runner launched: one of `docker compose up` says nothing
    of a launch, and has its heartbeat alone to be known by."""
    return attempt is None or bool(attempt.launch) or attempt.started < launch.started


def _target_of(attempt: Attempt | None, launch: Started | None) -> str:
    """Where the run was last: the record knows of starts without the runner, the launch of those that
    have not come to write a record."""
    if attempt is not None and (launch is None or attempt.started >= launch.started):
        return str(attempt.launch.get("target") or ("local" if is_container_id(attempt.host) else "host"))
    return launch.target if launch else "host"
