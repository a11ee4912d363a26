"""What runs in the container before and around the job: the body of the Modal function.

Modal mounts its client there without click and rich, so this imports the standard library, modal and the files
of this folder that do the same. The job is a process of its own; this one watches the clock, the volume and
Modal's signals, and keeps the ledger.

How an attempt ends decides what Modal does next. A return is a success, whatever the status in it: so a mistake
of the user's burns no retry. ``AttemptOver`` makes Modal start the same input again, up to ten times. A
KeyboardInterrupt that is raised again says that the machine was taken away: the same input starts elsewhere.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import modal
from modal.exception import InputCancellation

from job.run_record import EndReason, RunStatus
from runner.runs import attempts as ledgers
from runner.targets.modal.container import (
    JobProcess,
    MountedVolumes,
    gpu_name,
    other_call,
    place_in_cluster,
    price_of,
    uptime,
)
from runner.targets.modal.deadlines import Deadline, next_deadline, with_room
from runner.targets.modal.watchdog import Watchdogs

VOL = Path("/vol")

WORKSPACE = "/workspace"

LOOK = 0.25  # seconds between two looks at the process

SEEN = 15.0  # seconds between two notes of being at work

COMMIT = 60.0  # seconds between two commits where no checkpoint was written

ASK = 3.0  # seconds between two looks for a stop request, which cost a call each

GRACE = 24.0  # seconds for the checkpoint after a preemption: Modal kills after about 30

KEEP_RECORDS = ("train", "command", "experiment")  # jobs that write how they ended into run.json

# As in job/exit_status.py, which the body must not import: it may be broken.
AT_WORK, UNFINISHED, OVER_BUDGET = 1, 101, 104


class AttemptOver(Exception):
    """Modal's time for one attempt is used up; the next one goes on from the checkpoint."""


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Run ``job["command"]`` to its end, or as long as this attempt may last. {"status": exit status, "reason"}."""
    return AttemptRunner(job).run()


class AttemptRunner:
    """One attempt."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.call = modal.current_function_call_id() or ""  # known to this thread alone
        self.rank, self.address = place_in_cluster(job["nodes"])
        self.keeps_record = bool(job["keeps_record"]) and self.rank == 0
        self.folder = VOL / "checkpoints" / job["run"]
        self.volumes = MountedVolumes(job["volumes"])
        self.signals: queue.SimpleQueue[signal.Signals] = queue.SimpleQueue()
        self.ledger = ledgers.AttemptLog()
        self.stop_asked = threading.Event()
        self.guards: Watchdogs | None = None

    def run(self) -> dict[str, Any]:
        """The attempt from its signals to its last commit."""
        before = {s: signal.signal(s, self._received) for s in (signal.SIGINT, signal.SIGUSR1)}
        try:
            reason, status = self._attempt()
        finally:
            for which, handler in before.items():
                signal.signal(which, handler)
        if reason == EndReason.PREEMPTED:
            raise KeyboardInterrupt  # a return would count as a success
        if reason == EndReason.CANCELLED:
            raise InputCancellation("the call was cancelled; the checkpoint is written")
        if status is None:
            raise AttemptOver(
                "the time of this attempt is used up; the next one goes on from the checkpoint"
            )
        return {"status": status, "reason": reason}

    # --- the attempt ----------------------------------------------------------------------------

    def _attempt(self) -> tuple[str, int | None]:
        """Why it ended, and the job's exit status; None where another attempt goes on."""
        self.volumes.reload()
        if self.keeps_record and (other := other_call(ledgers.read(self.folder), self.call)):
            print(
                f"runner: run '{self.job['run']}' is at work already, in call {other}; nothing was begun",
                file=sys.stderr,
                flush=True,
            )
            return "at work already", AT_WORK
        deadline = self._begin()
        self.volumes.commit_in_background(
            "checkpoints"
        )  # another launch must see that this one works
        if deadline is not None and deadline.stop <= time.time():
            return self._end(
                deadline.reason, OVER_BUDGET if deadline.reason == EndReason.BUDGET else UNFINISHED
            )
        if self._stop_asked():
            return self._end(EndReason.STOPPED, UNFINISHED)
        process = JobProcess(self._command(), WORKSPACE, dict(self.job["env"]))
        threading.Thread(target=self._watch_for_stop, daemon=True).start()
        if self.keeps_record and self.job["job"] == "train":
            self.guards = Watchdogs(
                self.folder / "metrics.jsonl",
                self.job["stop_stalled_after"],
                self.job["stop_idle_gpu_after"],
            )
        reason, kill_at = "", float("inf")
        seen = committed = time.monotonic()
        marker = self._marker()
        while (code := process.wait(LOOK)) is None:
            now = time.monotonic()
            if not reason:
                reason, kill_at = self._why_stop(deadline)
                if reason:
                    print(
                        f"runner: {reason}: the job writes its checkpoint",
                        file=sys.stderr,
                        flush=True,
                    )
                    process.ask_to_stop()
            if time.time() >= kill_at:
                process.kill()
            if now - seen >= SEEN:
                seen = now
                self._note()
                if deadline is not None and (seconds := self._stopping_seconds()):
                    deadline = with_room(deadline, self.ledger.attempts[-1].started, seconds)
            if (
                self._marker() != marker or now - committed >= COMMIT
            ) and self.volumes.commit_in_background(*self.job.get("commits", ("checkpoints",))):
                marker, committed = self._marker(), now
        process.kill()  # what the job left behind
        if self.guards is not None:
            self.guards.close()
        return self._verdict(reason, code)

    def _why_stop(self, deadline: Deadline | None) -> tuple[str, float]:
        """The reason to end the job now, and when to kill it; '' where there is none."""
        now = time.time()
        if not self.signals.empty():
            which = self.signals.get()
            return (
                EndReason.PREEMPTED if which == signal.SIGINT else EndReason.CANCELLED
            ), now + GRACE
        if deadline is not None and now >= deadline.stop:
            return deadline.reason, max(deadline.kill, now)
        if self.stop_asked.is_set():
            return EndReason.STOPPED, float("inf")
        if self.guards is not None:
            reason, words = self.guards.why()
            if reason:
                print(f"runner: {words}", file=sys.stderr, flush=True)
                self.ledger.attempts[-1].detail = words
                return reason, now + GRACE  # what hangs may not hear
        return "", float("inf")

    def _verdict(self, reason: str, code: int) -> tuple[str, int | None]:
        """What the job's end means, written down and committed."""
        if not self.signals.empty() and reason not in (EndReason.PREEMPTED, EndReason.CANCELLED):
            reason = (
                EndReason.PREEMPTED if self.signals.get() == signal.SIGINT else EndReason.CANCELLED
            )
        # `runner stop --force` takes the machine away like Modal.
        if reason == EndReason.PREEMPTED and self._stop_asked():
            reason = EndReason.STOPPED
        recorded = self._recorded()
        if (
            code == 0 or recorded == RunStatus.FINISHED
        ):  # torchrun that was told to stop ends 1 in any case
            return self._end(EndReason.FINISHED, 0)
        if not reason or (recorded == RunStatus.FAILED and code not in (UNFINISHED, 137, 143)):
            # torchrun makes a 1 of its workers' 101; the record knows better.
            status = UNFINISHED if recorded == RunStatus.UNFINISHED and code == 1 else code
            if status == UNFINISHED and self.job["nodes"] > 1:
                return self._end("another node was taken away", None)
            return self._end(
                EndReason.FAILED if status != UNFINISHED else EndReason.STOPPED, status
            )
        match reason:
            case EndReason.PREEMPTED | EndReason.CANCELLED | EndReason.ATTEMPT_TIMEOUT:
                return self._end(reason, None)
            case EndReason.BUDGET:
                return self._end(reason, OVER_BUDGET)
            case _:
                return self._end(reason, UNFINISHED)

    def _command(self) -> list[str]:
        """The job's command; of several nodes, this one's."""
        here = {"{rank}": str(self.rank), "{address}": self.address}
        command = []
        for word in self.job["command"]:
            for name, value in here.items() if self.job["nodes"] > 1 else ():
                word = word.replace(name, value)
            command.append(word)
        return command

    # --- the ledger -----------------------------------------------------------------------------

    def _begin(self) -> Deadline | None:
        now = time.time()
        started = now - uptime()
        gpu = gpu_name()
        price = price_of(gpu, self.job["usd_per_hour"])
        if self.keeps_record:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.ledger = ledgers.read(self.folder)
        attempt = ledgers.CloudAttempt(
            call=self.call,
            container=os.environ.get("MODAL_TASK_ID", ""),
            started=started,
            seen=now,
            usd_per_hour=price,
            gpu=gpu,
        )
        self.ledger.begin(attempt, self.job["app"])
        self._write()
        if self.rank > 0:
            return None  # the first node keeps the time, and the others end with it
        earlier = self.ledger.attempts[:-1]
        return next_deadline(
            started,
            self.job["attempt_seconds"],
            self.job["total_seconds"],
            sum(a.seconds(now) for a in earlier),
            self.job["max_cost"],
            sum(a.cost(now) for a in earlier),
            price,
        )

    def _note(self) -> None:
        self.ledger.attempts[-1].seen = time.time()
        self._write()

    def _end(self, reason: str, status: int | None) -> tuple[str, int | None]:
        self.ledger.end_attempt(reason, status, time.time())
        if status is not None:
            self.ledger.end_call(status, reason)
        if reason == EndReason.CANCELLED:
            self.ledger.end_call(UNFINISHED, reason)
        self._write()
        self.volumes.wait(GRACE)
        if self.rank == 0:
            for name in self.job.get("commits", ("checkpoints",)):
                self.volumes.commit(name)
        if (
            self.rank == 0 and reason != EndReason.PREEMPTED
        ):  # there time is short, and Modal commits the rest at the exit
            for name in ("data", "cache"):
                self.volumes.commit(name)
        return reason, status

    def _write(self) -> None:
        if self.keeps_record:
            with suppress(OSError):  # a full volume must not end the job
                self.ledger.write(self.folder)

    def _marker(self) -> tuple[int, int] | None:
        """Changes when a checkpoint is complete."""
        try:
            status = (self.folder / self.job.get("marker", "latest")).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def _stopping_seconds(self) -> float:
        """What it would take to stop, by what was seen: the longest pause between two signs of the trainer, which hears of
        it between two steps, and of a checkpoint its writing and its commit. 0 while nothing is known."""
        signs = self.guards.stall.between if self.guards is not None else ()
        try:
            step = self.folder / (self.folder / "latest").read_text().strip()
            times = [path.stat().st_mtime for path in step.iterdir()]
        except OSError:
            times = []
        if not signs or not times or not self.volumes.slowest:
            return 0.0
        # The time of a file is that of its end: the first one counts as long as all that follow it.
        return max(signs) + 2 * (max(times) - min(times)) + self.volumes.slowest

    def _recorded(self) -> str | None:
        """What the trainer wrote of this very attempt; None where it came to write nothing."""
        try:
            record = json.loads((self.folder / "run.json").read_text())
            began = record["attempts"][-1]["started"] >= self.ledger.attempts[-1].started
            return str(record["status"]) if began and self.job["job"] in KEEP_RECORDS else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    # --- what comes from outside ----------------------------------------------------------------

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.signals.put(signal.Signals(number))

    def _watch_for_stop(self) -> None:
        while not self._stop_asked():
            time.sleep(ASK)
        self.stop_asked.set()

    def _stop_asked(self) -> bool:
        """Whether `runner stop` wants this call to end."""
        try:
            text = self.volumes.read("checkpoints", f"{self.job['run']}/{ledgers.STOP}")
            return bool(json.loads(text).get("call") == self.call)
        except Exception:  # mostly: there is no such file
            return False
