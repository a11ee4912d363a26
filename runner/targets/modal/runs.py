"""Runs on the checkpoints volume: their states, from the records there and from Modal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from job.exit_status import ExitStatus
from job.run_record import EndReason, RunRecord, RunStatus, parse_record
from runner.runs import attempts
from runner.runs.attempts import AttemptLog, CloudAttempt
from runner.runs.store import LAUNCH_NAME, is_fresh, parse_launch
from runner.target import LaunchHandle, RunInfo, VolumeFiles
from runner.targets.modal import TARGET_NAME
from runner.targets.modal.calls import CallState, is_app_active, poll_call
from runner.targets.modal.options import ModalOptions
from runner.targets.modal.volume import LazyVolumeFiles

READERS = 16  # parallel reads; each takes two round trips

REASONS: dict[str, str] = {
    EndReason.ATTEMPT_TIMEOUT: "Modal's time limit for an attempt",
    EndReason.RUN_TIMEOUT: "its --timeout is used up",
    EndReason.BUDGET: "its --max-cost is spent",
    EndReason.STOPPED: "stopped",
    EndReason.KILLED: "the container was lost",
    EndReason.STALLED: "it stalled",
    EndReason.IDLE_GPU: "a GPU was idle",
}


@dataclass(frozen=True)
class CloudRun:
    """The records of a run on the volume."""

    name: str
    record: RunRecord | None
    launch: LaunchHandle | None
    log: AttemptLog

    @property
    def is_launch_newest(self) -> bool:
        """Return whether the last launch has no attempt yet."""
        if self.launch is None:
            return False
        if self.launch.id:
            started = self.log.attempts[-1].started if self.log.attempts else 0.0
            return self.launch.id != self.log.call and self.launch.started > started
        return self.launch.location != self.log.app

    @property
    def call(self) -> str:
        """Return the newest function call; '' if the client never recorded it."""
        if self.launch is not None and self.is_launch_newest:
            return self.launch.id
        return self.log.call or (self.launch.id if self.launch else "")

    @property
    def app(self) -> str:
        """Return the app of that call."""
        if self.launch is not None and self.is_launch_newest:
            return self.launch.location
        return self.log.app or (self.launch.location if self.launch else "")

    @property
    def is_unconfirmed(self) -> bool:
        """Return whether the client of the last launch ended before it recorded the call."""
        return self.launch is not None and not self.launch.id

    @property
    def is_on_modal(self) -> bool:
        """Return whether its last attempt was on Modal: a pushed run was elsewhere since."""
        attempt = self.record.attempts[-1] if self.record and self.record.attempts else None
        if attempt is None:
            return bool(self.app)
        if self.launch is not None and self.launch.started >= attempt.started:
            return True
        return attempt.launch.get("target") == TARGET_NAME


def read_run(files: LazyVolumeFiles, name: str) -> CloudRun:
    """Return the run's records; empty ones for an unknown run."""
    paths = (f"{name}/run.json", f"{name}/{LAUNCH_NAME}", f"{name}/{attempts.NAME}")
    with ThreadPoolExecutor(len(paths)) as pool:
        record, launch_text, log = pool.map(files.read_if_exists, paths)
    launch = parse_launch(launch_text) if launch_text else None
    if launch is not None and launch.target != TARGET_NAME:
        launch = None
    parsed = parse_record(record) if record else None
    return CloudRun(name, parsed, launch, attempts.parse_log(log))


def all_runs(files: LazyVolumeFiles) -> Iterator[CloudRun]:
    """Yield every run whose last attempt was on Modal."""
    try:
        names = [entry.path for entry in files.entries() if entry.is_folder]
    except FileNotFoundError:
        return
    with ThreadPoolExecutor(READERS) as pool:
        for run in pool.map(lambda name: read_run(files, name), names):
            if run.is_on_modal:
                yield run


def poll_run(run: CloudRun) -> CallState:
    """Ask Modal for the state of the run's newest call, or of its app if the call is unknown."""
    if run.call:
        return poll_call(run.call)
    if run.app and is_app_active(run.app):
        return CallState(True)
    return CallState(False, error="the launch was interrupted before its function call started")


def state_of(run: CloudRun, poll: Callable[[CloudRun], CallState] = poll_run) -> RunInfo:
    """Return the run's state. ``poll`` asks Modal, and only if the records are not enough."""
    is_recorded = run.log.status is not None and not run.is_launch_newest
    call = CallState(False) if is_recorded or not (run.call or run.app) else poll(run)
    record = run.record or RunRecord(name=run.name, job=run.launch.job if run.launch else "train")
    log, now = run.log, time.time()
    last = log.attempts[-1] if log.attempts else None
    has_attempt = bool(last) and not run.is_launch_newest
    if call.doubtful and has_attempt and last is not None and last.ended is None:
        # Modal gave no account of the call; an attempt that records itself is alive.
        call = CallState(now - last.seen < attempts.STALE_S, error=call.error, doubtful=True)
    starts = [run.launch.started] if run.launch else []
    starts += [last.started] if last else []
    gpu = run.launch.target_options.gpu if run.launch else None
    return RunInfo(
        run=run.name,
        job=run.launch.job if run.launch else record.job,
        target=TARGET_NAME,
        status=derive_status(run, call, has_attempt),
        alive=call.alive,
        gpu=gpu or (last.gpu if last else None) or None,
        step=record.step,
        max_steps=record.max_steps,
        loss=record.val_loss if record.val_loss is not None else record.train_loss,
        attempts=len(log.attempts) or len(record.attempts),
        reason=end_reason(run, call),
        end_reasons=tuple(attempt.reason for attempt in log.attempts if attempt.reason),
        started=max(starts, default=None),
        ended=last.ended if last and not call.alive else None,
        cost=round(log.cost(now), 4) if log.attempts else None,
        estimated_cost=record.estimate.get("usd"),
        expected_cost=_expected_cost(record, last),
        estimated_seconds=record.estimate.get("seconds"),
        expected_seconds=record.expected_seconds,
        seconds=record.seconds or None,
        result=record.result if record.job == "experiment" else {},
    )


def reached_limit(run: CloudRun) -> tuple[str, float] | None:
    """Return the limit that ended the newest launch and its value in dollars or seconds."""
    if run.launch is None or run.is_launch_newest or run.launch.id not in ("", run.log.call):
        return None
    options = run.launch.target_options
    if not isinstance(options, ModalOptions):
        return None
    limits: dict[str, float | None] = {
        EndReason.BUDGET: options.max_cost,
        EndReason.RUN_TIMEOUT: options.timeout_s,
    }
    limit = limits.get(run.log.reason)
    return (run.log.reason, limit) if limit is not None else None


def _expected_cost(record: RunRecord, last: CloudAttempt | None) -> float | None:
    """Return the cost of the whole run at its measured speed and its last machine's price."""
    if record.expected_seconds_now is None or last is None:
        return None
    return round(record.expected_seconds_now / 3600 * last.usd_per_hour, 4)


def derive_status(run: CloudRun, call: CallState, has_attempt: bool) -> RunStatus:
    """Return the run's status. ``has_attempt``: an attempt of its newest call has started."""
    status = run.record.status if run.record else RunStatus.RUNNING
    if call.alive:
        is_running = has_attempt and status == RunStatus.RUNNING
        return RunStatus.RUNNING if is_running else RunStatus.STARTING
    if status == RunStatus.FINISHED:  # a later attempt that was refused changes nothing
        return status
    code = run.log.status if run.log.call == run.call else None
    if code is None and call.value is not None:
        code = call.value.get("status")
    match code:
        case None:
            if call.attempts_used_up:
                return RunStatus.UNFINISHED
            return status if status != RunStatus.RUNNING else RunStatus.LOST
        case ExitStatus.DONE:
            return RunStatus.FINISHED
        case ExitStatus.UNFINISHED | ExitStatus.OVER_BUDGET:
            return RunStatus.UNFINISHED
        case _:
            return RunStatus.FAILED


def end_reason(run: CloudRun, call: CallState) -> str | None:
    """Return why the last attempt ended, as a phrase."""
    last = run.log.attempts[-1] if run.log.attempts else None
    attempt = run.record.attempts[-1] if run.record and run.record.attempts else None
    if last is None or run.is_launch_newest:
        return call.error or None
    is_by_job = last.reason in (EndReason.FAILED, EndReason.FINISHED)
    if is_by_job and attempt is not None and attempt.reason:
        return attempt.reason
    phrase = REASONS.get(last.reason or "", last.reason) or call.error or None
    return f"{phrase}: {last.detail}" if phrase and last.detail else phrase


def recorded_status(run: CloudRun, call: str) -> int | None:
    """Return the exit status that the record has for ``call``; None while it has none."""
    return run.log.status if run.log.call == call else None


def is_active(files: VolumeFiles, run: str, heartbeat: float | None) -> bool:
    """Return whether a run was active when its heartbeat was touched, in seconds since the epoch.

    A run that ended leaves a fresh heartbeat behind, but its record shows the end. A run whose
    container was taken away continues at once in another, and its call is not over.
    """
    if heartbeat is None or not is_fresh(time.time() - heartbeat):
        return False
    record = parse_record(_read(files, f"{run}/run.json"))
    if record is None or record.status == RunStatus.RUNNING:
        return True
    log = attempts.parse_log(_read(files, f"{run}/{attempts.NAME}"))
    return record.status == RunStatus.UNFINISHED and bool(log.attempts) and log.status is None


def _read(files: VolumeFiles, path: str) -> bytes:
    try:
        return files.read(path)
    except FileNotFoundError:
        return b""
