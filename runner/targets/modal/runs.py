"""Runs on Modal: their states, from the records on the volume and from Modal; and pulled copies.

Also their cost since a given time. The records have every second, but only of runs that are still
on the volume; Modal bills whole hours, some time after they end.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from job.exit_status import ExitStatus
from job.format import dollars, parse_dollars
from job.run_record import EndReason, RunRecord, RunStatus, parse_record, read_record
from runner.errors import RunnerError, usage
from runner.jobs import RESUMABLE_JOBS
from runner.project import read_dotenv
from runner.request import Request, ServeRequest
from runner.runs import attempts
from runner.runs.attempts import LAUNCH_NAME, TAGS_NAME, AttemptLog, CloudAttempt
from runner.runs.store import (
    DAMAGED_RECORD,
    PulledRuns,
    parse_launch,
    read_launch,
    read_tags,
    record_problem,
    recorded_values,
)
from runner.target import LaunchHandle, RunCost, RunInfo, VolumeFiles
from runner.targets.modal import TARGET_NAME
from runner.targets.modal.calls import (
    MAX_TAG_LENGTH,
    CallState,
    LiveApp,
    is_app_active,
    live_apps,
    poll_call,
)
from runner.targets.modal.client import translate_modal_errors
from runner.targets.modal.options import ModalOptions
from runner.targets.modal.volume import ModalVolumeFiles

MONTHLY_CAP = "GPT_RUNNER_MONTHLY_CAP"

READERS = 16  # parallel reads; each takes two round trips

REASONS: dict[str, str] = {
    EndReason.ATTEMPT_TIMEOUT: "Modal's time limit for an attempt",
    EndReason.RUN_TIMEOUT: "its --timeout is used up",
    EndReason.BUDGET: "its --max-cost is spent",
    EndReason.STOPPED: "stopped",
    EndReason.KILLED: "the container was lost",
    EndReason.STALLED: "it stalled",
    EndReason.IDLE_GPU: "a GPU was idle",
    EndReason.NODE_LOST: "another machine of the run was lost",
}


@dataclass(frozen=True)
class CloudRun:
    """The records of a run on the volume."""

    name: str
    record: RunRecord | None
    launch: LaunchHandle | None
    log: AttemptLog
    tags: bytes | None = None  # content of tags.json
    problem: str = ""  # with a run.json that cannot be read

    @property
    def is_launch_newest(self) -> bool:
        """Return True if the last launch has no attempt yet."""
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
        """Return True if the client of the last launch ended before it recorded the call."""
        return self.launch is None or not self.launch.id or self.launch.location != self.app

    @property
    def is_on_modal(self) -> bool:
        """Return True if its last attempt was on Modal: a pushed run was elsewhere since."""
        attempt = self.record.attempts[-1] if self.record and self.record.attempts else None
        if attempt is None:
            return bool(self.app or self.problem)
        if self.launch is not None and self.launch.started >= attempt.started:
            return True
        return attempt.launch.get("target") == TARGET_NAME


def read_run(files: VolumeFiles, name: str) -> CloudRun:
    """Return the run's records; empty ones for an unknown run."""

    def read(file: str) -> bytes | None:
        try:
            return files.read(f"{name}/{file}")
        except FileNotFoundError:
            return None

    names = ("run.json", LAUNCH_NAME, attempts.NAME, TAGS_NAME)
    with ThreadPoolExecutor(len(names)) as pool:
        record, launch_text, log, tags = pool.map(read, names)
    launch = parse_launch(launch_text) if launch_text else None
    if launch is not None and launch.target != TARGET_NAME:
        launch = None
    parsed = parse_record(record) if record is not None else None
    problem = DAMAGED_RECORD if record is not None and parsed is None else ""
    return CloudRun(name, parsed, launch, attempts.parse_log(log), tags, problem)


def all_runs(files: ModalVolumeFiles) -> Iterator[CloudRun]:
    """Yield every run whose last attempt was on Modal."""
    try:
        names = [entry.path for entry in files.entries() if entry.is_folder]
    except FileNotFoundError:
        return
    with ThreadPoolExecutor(READERS) as pool:
        for run in pool.map(lambda name: read_run(files, name), names):
            if run.is_on_modal:
                yield run


def with_live_app(run: CloudRun, apps: Iterable[LiveApp]) -> CloudRun:
    """Return the run with the launch of a live app that its records do not know, if there is one.

    The client of a launch may be killed, and its record replaced or deleted, before the container
    records itself: the app's tags name the run.
    """
    recorded = {run.log.app, run.launch.location if run.launch else ""}
    for app in apps:
        is_ours = app.tags.get("run") == run.name[:MAX_TAG_LENGTH] and app.id not in recorded
        job = app.tags.get("job", "")
        if is_ours and job in RESUMABLE_JOBS:
            launch = LaunchHandle(
                run.name,
                TARGET_NAME,
                job,
                id="",
                started=app.started,
                detached=True,
                location=app.id,
                identity=app.tags.get("launch", ""),
                target_options=run.launch.target_options if run.launch else ModalOptions(),
            )
            return replace(run, launch=launch)
    return run


def find_active(
    run: CloudRun, apps: Callable[[], Iterable[LiveApp]] = live_apps
) -> tuple[CloudRun, RunInfo]:
    """Return the run and its state, also if it is active in an app that its records do not know."""
    state = state_of(run)
    if not state.alive and (newer := with_live_app(run, apps())) is not run:
        return newer, state_of(newer)
    return run, state


def all_states(files: ModalVolumeFiles) -> list[RunInfo]:
    """Return the state of every run on Modal, also of one that only an app's tags name."""
    with ThreadPoolExecutor(READERS) as pool:
        live = pool.submit(live_apps)
        runs = list(all_runs(files))
        by_name = dict(zip((run.name for run in runs), pool.map(state_of, runs), strict=True))
        apps = live.result()
    known = {run.name: run for run in runs}
    for name in dict.fromkeys(app.tags.get("run", "") for app in apps):
        recorded = known.get(name) or CloudRun(name, None, None, AttemptLog())
        run = with_live_app(recorded, apps)
        if run is not recorded and not (name in by_name and by_name[name].alive):
            by_name[name] = state_of(run)
    return list(by_name.values())


def poll_run(run: CloudRun, seconds: float = 0.0) -> CallState:
    """Ask Modal for the state of the run's newest call, or of its app if the call is unknown.

    Waits at most ``seconds`` for the call's end.
    """
    if run.call:
        return poll_call(run.call, seconds)
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
    if call.uncertain and has_attempt and last is not None and last.ended is None:
        # Modal did not report the call's end; an attempt that still records itself is alive.
        call = CallState(now - last.seen < attempts.STALE_S, error=call.error, uncertain=True)
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
        attempts=len(log.attempts) or len(record.attempts),
        reason=end_reason(run, call),
        end_reasons=tuple(attempt.reason for attempt in log.attempts if attempt.reason),
        started=max(starts, default=None),
        ended=last.ended if last and not call.alive else None,
        cost=round(log.cost(now), 4) if log.attempts else None,
        estimated_cost=record.estimate.get("usd"),
        expected_cost=_expected_cost(record, last),
        **recorded_values(record, run.launch, run.tags),
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
        is_server = run.launch is not None and run.launch.job == ServeRequest.job.name
        is_running = (has_attempt or is_server) and status == RunStatus.RUNNING
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
        return run.problem or call.error or None
    is_by_job = last.reason in (EndReason.FAILED, EndReason.FINISHED)
    if is_by_job and attempt is not None and attempt.reason:
        return attempt.reason
    phrase = REASONS.get(last.reason or "", last.reason) or call.error or None
    return f"{phrase}: {last.detail}" if phrase and last.detail else phrase


class MirroredRuns(PulledRuns):
    """The pulled copies of runs on Modal: without a network, an account, or the run on Modal."""

    def state(self, run: str) -> RunInfo | None:
        """Return the state of the run when it was pulled; None if it was not pulled."""
        folder = self.checkpoints / run
        record, launch = read_record(folder), read_launch(folder)
        remote = launch if launch is not None and launch.target == self.target else None
        log, tags, problem = attempts.read_log(folder), read_tags(folder), ""
        if record is None:
            problem = record_problem(folder)
            if not problem or not (remote or log.app):
                return None
            record = RunRecord(run, status=RunStatus.LOST)
        cloud_run = CloudRun(run, record, remote, log, tags, problem)
        if not cloud_run.is_on_modal:
            return None
        state = state_of(cloud_run, lambda _: CallState(False))
        status = state.status if cloud_run.log.status is not None else record.status
        return replace(
            state,
            status=status,
            folder=str(folder),
            is_copy=True,
            last_seen=_last_seen(cloud_run, record),
        )


def _last_seen(run: CloudRun, record: RunRecord) -> float | None:
    """Return when the copied run was last active, in seconds since the epoch; None if unknown."""
    if run.log.attempts:
        return run.log.attempts[-1].seen
    if record.attempts:
        return record.attempts[-1].started
    return run.launch.started if run.launch else None


def costs_since(files: ModalVolumeFiles, since: float) -> list[RunCost]:
    """Return the cost of each run since then; apps that are not runs have the name ''."""
    recorded, billed = _recorded(files, since), _billed(since)
    names = sorted(recorded.keys() | billed.keys())
    return [RunCost(name, recorded.get(name, 0.0), billed.get(name, 0.0)) for name in names]


def check_monthly_cap(
    files: ModalVolumeFiles, environ: Mapping[str, str], checkout: Path, request: Request
) -> None:
    """Raise RunnerError if a launch could exceed GPT_RUNNER_MONTHLY_CAP, in US dollars.

    A long job needs a --max-cost within what the month has left: then it stops itself in time.
    """
    text = environ.get(MONTHLY_CAP) or read_dotenv(checkout, {MONTHLY_CAP}).get(MONTHLY_CAP)
    if not text:
        return
    cap = parse_dollars(text, MONTHLY_CAP)
    spent = sum(_recorded(files, start_of_month().timestamp()).values())
    available = math.floor(100 * (cap - spent)) / 100
    state = f"{MONTHLY_CAP} is {dollars(cap)}, and the runs of this month cost {dollars(spent)}"
    if available <= 0:
        raise RunnerError(f"{state}; raise it in .env, or wait for the next month")
    max_cost = request.target_options.max_cost
    if request.job.name in RESUMABLE_JOBS and (max_cost is None or max_cost > available):
        raise usage(f"{state}; launch with --max-cost {available:.2f} or less")


def start_of_month(now: datetime.datetime | None = None) -> datetime.datetime:
    """Return the start of the month in UTC, as Modal bills it."""
    now = now or datetime.datetime.now(datetime.UTC)
    return now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _recorded(files: ModalVolumeFiles, since: float) -> dict[str, float]:
    now = time.time()
    costs = {run.name: run.log.cost(now, since) for run in all_runs(files)}
    return {name: cost for name, cost in costs.items() if cost}


def _billed(since: float) -> dict[str, float]:
    from modal import Workspace

    start = datetime.datetime.fromtimestamp(since, datetime.UTC)
    with translate_modal_errors():
        report = Workspace.from_context().billing.report
        items = report(start=start, resolution="h", tag_names=["run"])
    billed: dict[str, float] = {}
    for item in items:
        name = item.tags.get("run", "")
        billed[name] = billed.get(name, 0.0) + float(item.cost)
    return billed
