"""The Modal function: it runs one attempt of a job in the container.

Modal mounts its client in the container, without click and rich, so this module imports the
standard library, modal, and modules that do the same. The job is a process of its own;
`AttemptRunner` watches the deadlines, the volumes and Modal's signals, and writes ``cloud.json``.

The way an attempt ends decides what Modal does next. A return is a success, whatever the status in
it, so that a user's mistake costs no retry. AttemptUnfinished makes Modal start the same input
again, at most ten times. A KeyboardInterrupt that is raised again marks a preemption: the input
starts again in another container.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NotRequired, TypedDict

import modal
from modal.exception import InputCancellation

from job.exit_status import ExitStatus
from job.files import write_atomically
from job.paths import WORKSPACE
from job.run_record import REQUEST_NAME, EndReason, RunStatus
from job.typed_json import read_object
from runner.runs import attempts
from runner.signals import signal_handler
from runner.targets.modal.container import (
    JobProcess,
    MountedVolumes,
    active_call,
    cluster_rank,
    for_node,
    gpu_name,
    price_of,
    print_message,
    uptime,
)
from runner.targets.modal.watchdog import (
    MAX_RETRIES,
    AttemptNotifier,
    Deadline,
    Watchdogs,
    next_deadline,
    with_measured_margin,
)

VOLUMES_FOLDER = Path("/vol")

PROCESS_POLL_S = 0.25
RECORD_INTERVAL_S = 15.0  # between two updates of cloud.json
COMMIT_INTERVAL_S = 60.0  # between two commits without a checkpoint
STOP_POLL_S = 3.0  # each poll for a stop request is a call to Modal
GRACE_S = 24.0  # for the checkpoint after a preemption; Modal kills after about 30 s

JOBS_WITH_RECORD = ("train", "command", "experiment")  # they write their end into run.json
RETRIED = (EndReason.NODE_LOST, EndReason.ATTEMPT_TIMEOUT)  # count as Modal's retries
SIGKILL_STATUS, SIGTERM_STATUS = 137, 143
NEVER = float("inf")


class JobSpec(TypedDict):
    """The function's argument. Times are in seconds."""

    run: str
    job: str
    command: list[str]
    env: dict[str, str]
    volumes: dict[str, str]  # their names on Modal
    keeps_record: bool
    launch: dict[str, Any]  # its record, without app and call; it has the ResolvedOptions
    attempt_s: float
    usd_per_hour: dict[str, float]  # by GPU type
    commits: list[str]  # volumes committed while the job runs
    marker: str  # the file in the run's folder that changes with each checkpoint
    app: NotRequired[str]


class AttemptUnfinished(Exception):
    """The attempt ended before the job; the next one resumes from the checkpoint."""


def run_job(job: JobSpec) -> dict[str, Any]:
    """Run the job to its end, or as long as this attempt may last; return status and reason."""
    return AttemptRunner(job).run()


class AttemptRunner:
    """Runs one attempt."""

    def __init__(self, job: JobSpec) -> None:
        self.job = job
        self.call = modal.current_function_call_id() or ""  # known in this thread only
        self.options: dict[str, Any] = job["launch"]["target_options"]
        self.rank, self.address = cluster_rank(self.options["nodes"])
        self.keeps_record = job["keeps_record"] and self.rank == 0
        self.folder = VOLUMES_FOLDER / "checkpoints" / job["run"]
        self.volumes = MountedVolumes(job["volumes"])
        self.signals: queue.SimpleQueue[signal.Signals] = queue.SimpleQueue()
        self.log = attempts.AttemptLog()
        self.stop_event = threading.Event()
        self.watchdogs: Watchdogs | None = None
        self.notifier = AttemptNotifier(job["run"], self.folder)  # the job itself sends nothing
        if not self.keeps_record or job["job"] not in JOBS_WITH_RECORD:
            self.notifier.silence()

    def run(self) -> dict[str, Any]:
        """Run the attempt, and end the function as Modal needs it to continue or finish."""
        with signal_handler(self._on_signal, signal.SIGINT, signal.SIGUSR1):
            reason, status = self._attempt()
        if reason == EndReason.PREEMPTED:
            raise KeyboardInterrupt  # a return would count as a success
        if reason == EndReason.CANCELLED:
            raise InputCancellation("the call was cancelled; the checkpoint is written")
        if status is None:
            raise AttemptUnfinished(f"the attempt ended ({reason}); the next one resumes")
        return {"status": status, "reason": reason}

    # --- the attempt ----------------------------------------------------------------------------

    def _attempt(self) -> tuple[EndReason, int | None]:
        """Run the attempt; return the reason for its end and the job's exit status.

        The status is None if another attempt follows.
        """
        self.volumes.reload()
        if self.keeps_record and (other := active_call(attempts.read_log(self.folder), self.call)):
            print_message(
                f"run '{self.job['run']}' is already active in call {other}; this call does nothing"
            )
            return EndReason.DUPLICATE_CALL, int(ExitStatus.ERROR)
        deadline = self._begin()
        self.volumes.commit_in_background("checkpoints")  # for launches at the same moment
        if deadline is not None and deadline.stop <= time.time():
            return self._end(deadline.reason, _limit_status(deadline.reason))
        if self._stop_requested():
            return self._end(EndReason.STOPPED, ExitStatus.UNFINISHED)
        command, variables = for_node(
            self.job["command"], self.options["nodes"], self.rank, self.address
        )
        process = JobProcess(command, WORKSPACE, self.job["env"] | variables)
        threading.Thread(target=self._watch_for_requests, daemon=True).start()
        if self.keeps_record and self.job["job"] in ("train", "command"):
            self.watchdogs = Watchdogs(
                self.folder / "metrics.jsonl",
                self.options["stop_stalled_after_s"],
                self.options["stop_idle_gpu_after_s"],
            )
        reason, code = self._supervise(process, deadline)
        process.kill()  # the rest of its process group
        if self.watchdogs is not None:
            self.watchdogs.close()
        return self._classify_end(reason, code)

    def _supervise(
        self, process: JobProcess, deadline: Deadline | None
    ) -> tuple[EndReason | None, int]:
        """Wait for the job's end, stopping it in time; return the reason to stop it and its status.

        The reason is None if the job ended by itself.
        """
        reason: EndReason | None = None
        kill_at = NEVER
        recorded = committed = time.monotonic()
        marker = self._marker()
        while (code := process.wait(PROCESS_POLL_S)) is None:
            now = time.monotonic()
            self.notifier.warn_of_cap(self.log, self.options["max_cost"])
            if reason is None and (stop := self._why_stop(deadline)) is not None:
                reason, kill_at = stop
                print_message(f"stopping ({reason}): the job is saving its checkpoint")
                process.ask_to_stop()
            if time.time() >= kill_at:
                process.kill()
            if now - recorded >= RECORD_INTERVAL_S:
                recorded = now
                self.log.attempts[-1].seen = time.time()
                self._write_log()
                if deadline is not None and (stopping_s := self._measured_stopping_s()):
                    started = self.log.attempts[-1].started
                    deadline = with_measured_margin(deadline, started, stopping_s)
            is_due = self._marker() != marker or now - committed >= COMMIT_INTERVAL_S
            if is_due and self.volumes.commit_in_background(*self.job["commits"]):
                marker, committed = self._marker(), now
        return reason, code

    def _why_stop(self, deadline: Deadline | None) -> tuple[EndReason, float] | None:
        """Return the reason to stop the job now, and when to kill it."""
        now = time.time()
        if not self.signals.empty():
            return self._signal_reason(), now + GRACE_S
        if deadline is not None and now >= deadline.stop:
            return deadline.reason, max(deadline.kill, now)
        if self.stop_event.is_set():
            return EndReason.STOPPED, NEVER
        if self.watchdogs is not None and (report := self.watchdogs.check()) is not None:
            reason, message = report
            print_message(message)
            self.log.attempts[-1].detail = message
            return reason, now + GRACE_S  # a hung process may ignore SIGTERM
        return None

    def _signal_reason(self) -> EndReason:
        """Return the meaning of the first signal that Modal sent."""
        received = self.signals.get()
        return EndReason.PREEMPTED if received == signal.SIGINT else EndReason.CANCELLED

    def _classify_end(self, reason: EndReason | None, code: int) -> tuple[EndReason, int | None]:
        """Derive the reason and the status of the attempt's end, record and commit them."""
        if not self.signals.empty() and reason not in (EndReason.PREEMPTED, EndReason.CANCELLED):
            reason = self._signal_reason()
        # `runner stop --force` ends the container by the same signal as a preemption.
        if reason == EndReason.PREEMPTED and self._stop_requested():
            reason = EndReason.STOPPED
        recorded = self._recorded_status()
        if code == 0 or recorded == RunStatus.FINISHED:  # a stopped torchrun always exits with 1
            return self._end(EndReason.FINISHED, 0)
        killed = (ExitStatus.UNFINISHED, SIGKILL_STATUS, SIGTERM_STATUS)
        if reason is None or (recorded == RunStatus.FAILED and code not in killed):
            # torchrun exits with 1 when its workers exit with 101; the record tells which it was.
            if recorded == RunStatus.UNFINISHED and code == 1:
                code = ExitStatus.UNFINISHED
            if code != ExitStatus.UNFINISHED:
                return self._end(EndReason.FAILED, code)
            if self.options["nodes"] > 1:
                return self._end(EndReason.NODE_LOST, None)
            return self._end(EndReason.STOPPED, code)
        if reason in (EndReason.PREEMPTED, EndReason.CANCELLED, EndReason.ATTEMPT_TIMEOUT):
            return self._end(reason, None)
        return self._end(reason, _limit_status(reason))

    # --- the record of attempts -----------------------------------------------------------------

    def _begin(self) -> Deadline | None:
        """Record the attempt; return its deadline, which only the first node watches."""
        now = time.time()
        started = now - uptime()
        gpu = gpu_name()
        price = price_of(gpu, self.job["usd_per_hour"])
        if self.keeps_record:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.log = attempts.read_log(self.folder)
        attempt = attempts.CloudAttempt(
            call=self.call,
            container=os.environ.get("MODAL_TASK_ID", ""),
            started=started,
            seen=now,
            usd_per_hour=price,
            gpu=gpu,
        )
        self.log.begin(attempt, self.job.get("app", ""))
        self._write_log()
        if self.rank > 0:
            return None
        earlier = self.log.attempts[:-1]
        self.notifier.resumed(self.log)
        return next_deadline(
            started,
            self.job["attempt_s"],
            self.options["timeout_s"],
            sum(a.seconds(now) for a in earlier),
            self.options["max_cost"],
            sum(a.cost(now) for a in earlier),
            price,
        )

    def _end(self, reason: EndReason, status: int | None) -> tuple[EndReason, int | None]:
        """Record the end and commit; ``status`` is None if another attempt follows."""
        earlier = [a.reason for a in self.log.attempts[:-1] if a.call == self.call]
        if reason in RETRIED and sum(r in RETRIED for r in earlier) >= MAX_RETRIES:
            self.log.attempts[-1].detail = f"all {MAX_RETRIES + 1} attempts are used up"
            status = int(ExitStatus.UNFINISHED)  # so that the end is recorded and reported
        self.log.end_attempt(reason, status, time.time())
        if status is not None:
            self.log.end_call(int(status), reason)
        if reason == EndReason.CANCELLED:
            self.log.end_call(int(ExitStatus.UNFINISHED), reason)
        message = self.notifier.ended(self.log)
        self._write_log()
        self.volumes.wait(GRACE_S)
        if self.rank == 0:
            for name in self.job["commits"]:
                self.volumes.commit(name)
            # After a preemption time is short, and Modal commits these at exit.
            if reason != EndReason.PREEMPTED:
                for name in ("data", "cache"):
                    self.volumes.commit(name)
        if message is not None and (problem := message.wait()):
            print_message(problem)
        return reason, status

    def _write_log(self) -> None:
        if self.keeps_record:
            with suppress(OSError):  # a full volume must not end the job
                self.log.write(self.folder)

    def _marker(self) -> tuple[int, int] | None:
        """Return a value that changes when a checkpoint is complete."""
        try:
            status = (self.folder / self.job["marker"]).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def _measured_stopping_s(self) -> float:
        """Estimate the seconds that stopping takes; 0 before the first measurement.

        The estimate is the sum of the longest pause between two metrics (the trainer notices a
        request between steps), the write and the slowest commit of a checkpoint.
        """
        intervals = self.watchdogs.stall.intervals if self.watchdogs is not None else ()
        try:
            step = self.folder / (self.folder / "latest").read_text(encoding="utf-8").strip()
            times = [path.stat().st_mtime for path in step.iterdir()]
        except OSError:
            times = []
        if not intervals or not times or not self.volumes.slowest_commit_s:
            return 0.0
        # An mtime is the end of a write, so the first file's duration is unknown: assume that it
        # took as long as all later ones.
        writing_s = 2 * (max(times) - min(times))
        return max(intervals) + writing_s + self.volumes.slowest_commit_s

    def _recorded_status(self) -> str | None:
        """Return the status that the job recorded in this attempt; None if it recorded none."""
        if self.job["job"] not in JOBS_WITH_RECORD:
            return None
        try:
            record = read_object((self.folder / "run.json").read_bytes())
            if record["attempts"][-1]["started"] < self.log.attempts[-1].started:
                return None
            return str(record["status"])
        except (OSError, ValueError, LookupError, TypeError):
            return None

    # --- signals and stop requests --------------------------------------------------------------

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals.put(signal.Signals(number))

    def _watch_for_requests(self) -> None:
        request = b""
        time.sleep(STOP_POLL_S)
        with suppress(Exception):  # Modal does not answer
            self._record_launch()
        while not self._stop_requested():
            with suppress(Exception):  # usually the file does not exist
                path = f"{self.job['run']}/{REQUEST_NAME}"
                if (newest := self.volumes.read("checkpoints", path)) != request:
                    write_atomically(self.folder / REQUEST_NAME, newest)
                    request = newest
            time.sleep(STOP_POLL_S)
        self.stop_event.set()

    def _record_launch(self) -> None:
        """Record the launch unless the client has recorded it."""
        if not self.keeps_record:
            return
        try:
            recorded = read_object(
                self.volumes.read("checkpoints", f"{self.job['run']}/{attempts.LAUNCH_NAME}")
            )
        except FileNotFoundError:
            recorded = {}
        if recorded.get("identity") != self.job["launch"]["identity"]:
            launch = {**self.job["launch"], "location": self.job.get("app", "")}
            write_atomically(
                self.folder / attempts.LAUNCH_NAME, json.dumps(launch, indent=2) + "\n"
            )

    def _stop_requested(self) -> bool:
        """Return True if `runner stop` asked this call to end."""
        try:
            path = f"{self.job['run']}/{attempts.STOP_NAME}"
            request = read_object(self.volumes.read("checkpoints", path))
            return bool(request.get("call") == self.call)
        except Exception:  # usually the file does not exist
            return False


def _limit_status(reason: EndReason) -> int:
    """Return the exit status of a run that was stopped for ``reason``."""
    over_budget = reason == EndReason.BUDGET
    return int(ExitStatus.OVER_BUDGET if over_budget else ExitStatus.UNFINISHED)
