"""Runs on the checkpoints volume: how each stands, from its records there and from its call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from job.exit_status import ExitStatus
from job.run_record import EndReason, RunRecord, RunStatus, parse_record
from runner.runs import attempts
from runner.runs import attempts as ledgers
from runner.runs.attempts import AttemptLog, CloudAttempt
from runner.runs.store import LAUNCH_NAME as LAUNCH
from runner.runs.store import is_fresh, parse_launch
from runner.target import LaunchHandle, RunInfo
from runner.targets.modal.calls import CallState, look
from runner.targets.modal.options import ModalOptions
from runner.targets.modal.volume import LateFiles, ModalVolumeFiles

READERS = 16  # files that are read at a time; each is two round trips

REASONS: dict[str, str] = {
    EndReason.ATTEMPT_TIMEOUT: "Modal's time for an attempt",
    EndReason.RUN_TIMEOUT: "its --timeout is used up",
    EndReason.BUDGET: "its --max-cost is spent",
    EndReason.STOPPED: "stopped",
    EndReason.KILLED: "the machine was taken away without a word",
    EndReason.STALLED: "it stood still",
    EndReason.IDLE_GPU: "a GPU stood idle",
}


@dataclass(frozen=True)
class CloudRun:
    """What the volume says of a run."""

    name: str
    record: RunRecord | None
    launch: LaunchHandle | None
    ledger: AttemptLog

    @property
    def call(self) -> str:
        """The newest function call: the body notes its own, and the client that of a launch that waits."""
        began = self.ledger.attempts[-1].started if self.ledger.attempts else 0.0
        if self.launch is not None and self.launch.started > began:
            return self.launch.id
        return self.ledger.call or (self.launch.id if self.launch else "")

    @property
    def app(self) -> str:
        """That call's app."""
        if self.launch is not None and self.launch.id == self.call:
            return self.launch.location
        return self.ledger.app

    @property
    def is_of_cloud(self) -> bool:
        """Whether its last attempt was here: a run that was pushed has been elsewhere."""
        attempt = self.record.attempts[-1] if self.record and self.record.attempts else None
        if attempt is None:
            return bool(self.call)
        if (
            self.launch is not None
            and self.launch.target == "cloud"
            and self.launch.started >= attempt.started
        ):
            return True
        return attempt.launch.get("target") == "cloud"


def read_run(files: LateFiles, name: str) -> CloudRun:
    """The run's records; empty where there is no such run."""
    with ThreadPoolExecutor(3) as pool:
        record, launch, ledger = pool.map(
            files.text, (f"{name}/run.json", f"{name}/{LAUNCH}", f"{name}/{ledgers.NAME}")
        )
    started = parse_launch(launch) if launch else None
    if started is not None and started.target != "cloud":
        started = None
    return CloudRun(name, parse_record(record) if record else None, started, ledgers.parse(ledger))


def all_runs(files: LateFiles) -> Iterator[CloudRun]:
    """Every run whose last attempt was in the cloud."""
    try:
        names = [entry.path for entry in files.entries() if entry.is_folder]
    except FileNotFoundError:
        return
    with ThreadPoolExecutor(READERS) as pool:
        for run in pool.map(lambda name: read_run(files, name), names):
            if run.is_of_cloud:
                yield run


def state_of(run: CloudRun, ask: Callable[[str], CallState] = look) -> RunInfo:
    """How it stands. ``ask`` looks at a call on Modal; it is not asked where the volume says all."""
    ended = run.ledger.status is not None and run.ledger.call == run.call
    call = CallState(False) if ended or not run.call else ask(run.call)
    record = run.record or RunRecord(name=run.name, job=run.launch.job if run.launch else "train")
    attempts = run.ledger.attempts
    here = [attempt for attempt in attempts if attempt.call == run.call]
    loss = record.val_loss if record.val_loss is not None else record.train_loss
    last = attempts[-1] if attempts else None
    began = [run.launch.started] if run.launch else []
    began += [last.started] if last else []
    return RunInfo(
        run=run.name,
        job=run.launch.job if run.launch else record.job,
        target="cloud",
        status=derive_status(run, call, bool(here)),
        alive=call.alive,
        gpu=(run.launch.target_options.gpu if run.launch else None)
        or (last.gpu if last else None)
        or None,
        step=record.step,
        max_steps=record.max_steps,
        loss=loss,
        attempts=len(attempts) or len(record.attempts),
        reason=reason(run, call),
        end_reasons=tuple(a.reason for a in attempts if a.reason),
        started=max(began, default=None),
        ended=last.ended if last and not call.alive else None,
        cost=round(run.ledger.cost(time.time()), 4) if attempts else None,
        estimated_cost=record.estimate.get("usd"),
        expected_cost=_expected_cost(record, last),
        estimated_seconds=record.estimate.get("seconds"),
        expected_seconds=record.expected_seconds,
        seconds=record.seconds or None,
        result=record.result if record.job == "experiment" else {},
    )


def reached(run: CloudRun) -> tuple[str, float] | None:
    """The cap that ended its newest launch, ``budget`` or ``timeout``, and how much it was: dollars or seconds."""
    if run.launch is None or run.launch.id != run.ledger.call:
        return None
    options = run.launch.target_options
    assert isinstance(options, ModalOptions)
    caps: dict[str, float | None] = {
        EndReason.BUDGET: options.max_cost,
        EndReason.RUN_TIMEOUT: options.timeout_s,
    }
    cap = caps.get(run.ledger.reason)
    return (run.ledger.reason, cap) if cap is not None else None


def _expected_cost(record: RunRecord, last: CloudAttempt | None) -> float | None:
    """US dollars for the whole run at the pace that it measured, and at the price of its last machine."""
    if record.expected_seconds_now is None or last is None:
        return None
    return round(record.expected_seconds_now / 3600 * last.usd_per_hour, 4)


def derive_status(run: CloudRun, call: CallState, began: bool) -> RunStatus:
    """One word for it."""
    status = run.record.status if run.record else RunStatus.RUNNING
    if call.alive:
        return RunStatus.RUNNING if began and status == RunStatus.RUNNING else RunStatus.STARTING
    if (
        status == RunStatus.FINISHED
    ):  # an attempt that the job refused, or that never came so far, takes nothing back
        return status
    code = run.ledger.status if run.ledger.call == run.call else None
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


def reason(run: CloudRun, call: CallState) -> str | None:
    """Why the last attempt ended, in words."""
    last = run.ledger.attempts[-1] if run.ledger.attempts else None
    attempt = run.record.attempts[-1] if run.record and run.record.attempts else None
    if last is None or last.call != run.call:
        return call.error or None
    if (
        last.reason in (EndReason.FAILED, EndReason.FINISHED)
        and attempt is not None
        and attempt.reason
    ):
        return attempt.reason
    words = REASONS.get(last.reason or "", last.reason) or call.error or None
    return f"{words}: {last.detail}" if words and last.detail else words


def is_at_work(files: ModalVolumeFiles, run: str, heartbeat: float | None) -> bool:
    """``heartbeat`` is when it was touched, in seconds since the epoch; None where there is none.

    A run that ended leaves a fresh one behind: its record says so. One that was only taken from its machine goes on
    at once on another, and its ledger knows of a call that is not over.
    """
    if heartbeat is None or not is_fresh(time.time() - heartbeat):
        return False
    record = parse_record(_read(files, f"{run}/run.json"))
    if record is None or record.status == RunStatus.RUNNING:
        return True
    log = attempts.parse(_read(files, f"{run}/{attempts.NAME}"))
    return record.status == RunStatus.UNFINISHED and bool(log.attempts) and log.status is None


def _read(files: ModalVolumeFiles, path: str) -> bytes:
    try:
        return files.read(path)
    except FileNotFoundError:
        return b""
