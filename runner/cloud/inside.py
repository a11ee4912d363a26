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
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import modal
from modal.exception import InputCancellation

from runner.cloud import ledger as ledgers
from runner.cloud.deadlines import Deadline, next_deadline
from runner.cloud.job_process import JobProcess

VOL = Path("/vol")
WORKSPACE = "/workspace"
STOP = "cloud_stop.json"  # what `runner stop` leaves in the run's folder

LOOK = 0.25  # seconds between two looks at the process
SEEN = 15.0  # seconds between two notes of being at work
COMMIT = 60.0  # seconds between two commits where no checkpoint was written
ASK = 3.0  # seconds between two looks for a stop request, which cost a call each
GRACE = 24.0  # seconds for the checkpoint after a preemption: Modal kills after about 30
UNFINISHED, OVER_BUDGET = 101, 104  # model/exit_status.py, which the body must not import: it may be broken


class AttemptOver(Exception):
    """Modal's time for one attempt is used up; the next one goes on from the checkpoint."""


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Run ``job["command"]`` to its end, or as long as this attempt may last. {"status": exit status, "reason"}."""
    return Body(job).run()


class Body:
    """One attempt."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.call = modal.current_function_call_id() or ""  # known to this thread alone
        self.rank, self.address = _place_in_cluster(job["nodes"])
        self.keeps_record = bool(job["keeps_record"]) and self.rank == 0
        self.folder = VOL / "checkpoints" / job["run"]
        self.volumes = {n: modal.Volume.from_name(name) for n, name in job["volumes"].items()}
        self.signals: queue.SimpleQueue[signal.Signals] = queue.SimpleQueue()
        self.ledger = ledgers.Ledger()
        self.committing: threading.Thread | None = None
        self.stop_asked = threading.Event()

    def run(self) -> dict[str, Any]:
        """The attempt from its signals to its last commit."""
        before = {s: signal.signal(s, self._received) for s in (signal.SIGINT, signal.SIGUSR1)}
        try:
            reason, status = self._attempt()
        finally:
            for which, handler in before.items():
                signal.signal(which, handler)
        if reason == "preempted":
            raise KeyboardInterrupt  # a return would count as a success
        if reason == "cancelled":
            raise InputCancellation("the call was cancelled; the checkpoint is written")
        if status is None:
            raise AttemptOver("the time of this attempt is used up; the next one goes on from the checkpoint")
        return {"status": status, "reason": reason}

    # --- the attempt ----------------------------------------------------------------------------

    def _attempt(self) -> tuple[str, int | None]:
        """Why it ended, and the job's exit status; None where another attempt goes on."""
        self._reload()
        deadline = self._begin()
        if deadline is not None and deadline.stop <= time.time():
            return self._end(deadline.reason, OVER_BUDGET if deadline.reason == "budget" else UNFINISHED)
        if self._stop_asked():
            return self._end("stopped", UNFINISHED)
        process = JobProcess(self._command(), WORKSPACE, dict(self.job["env"]))
        self._start(self._watch_for_stop)
        reason, kill_at = "", float("inf")
        seen = committed = time.monotonic()
        marker = self._marker()
        while (code := process.wait(LOOK)) is None:
            now = time.monotonic()
            if not reason:
                reason, kill_at = self._why_stop(deadline)
                if reason:
                    print(f"runner: {reason}: the job writes its checkpoint", file=sys.stderr, flush=True)
                    process.ask_to_stop()
            if time.time() >= kill_at:
                process.kill()
            if now - seen >= SEEN:
                seen = now
                self._note()
            if (self._marker() != marker or now - committed >= COMMIT) and self._commit_in_background():
                marker, committed = self._marker(), now
        process.kill()  # what the job left behind
        return self._verdict(reason, code)

    def _why_stop(self, deadline: Deadline | None) -> tuple[str, float]:
        """The reason to end the job now, and when to kill it; '' where there is none."""
        now = time.time()
        if not self.signals.empty():
            which = self.signals.get()
            return ("preempted" if which == signal.SIGINT else "cancelled"), now + GRACE
        if deadline is not None and now >= deadline.stop:
            return deadline.reason, max(deadline.kill, now)
        if self.stop_asked.is_set():
            return "stopped", float("inf")
        return "", float("inf")

    def _verdict(self, reason: str, code: int) -> tuple[str, int | None]:
        """What the job's end means, written down and committed."""
        if not self.signals.empty() and reason not in ("preempted", "cancelled"):
            reason = "preempted" if self.signals.get() == signal.SIGINT else "cancelled"
        recorded = self._recorded()
        if code == 0 or recorded == "finished":  # torchrun that was told to stop ends 1 in any case
            return self._end("finished", 0)
        if not reason or (recorded == "failed" and code not in (UNFINISHED, 137, 143)):
            # torchrun makes a 1 of its workers' 101; the record knows better.
            status = UNFINISHED if recorded == "unfinished" and code == 1 else code
            if status == UNFINISHED and self.job["nodes"] > 1:
                return self._end("another node was taken away", None)
            return self._end("failed" if status != UNFINISHED else "stopped", status)
        match reason:
            case "preempted" | "cancelled" | "time-out":
                return self._end(reason, None)
            case "budget":
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
        started = now - _uptime()
        gpu = _gpu_name()
        price = _price(gpu, self.job["usd_per_hour"])
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
        if reason == "cancelled":
            self.ledger.end_call(UNFINISHED, reason)
        self._write()
        if self.committing is not None:
            self.committing.join(GRACE)
        if self.rank == 0:
            self._commit("checkpoints")
        if (
            self.rank == 0 and reason != "preempted"
        ):  # there time is short, and Modal commits the rest at the exit
            for name in ("data", "cache"):
                self._commit(name)
        return reason, status

    def _write(self) -> None:
        if self.keeps_record:
            with suppress(OSError):  # a full volume must not end the job
                self.ledger.write(self.folder)

    # --- the volumes ----------------------------------------------------------------------------

    def _reload(self) -> None:
        for volume in self.volumes.values():
            try:
                volume.reload()
            except Exception as error:
                print(f"runner: a volume was not reloaded: {error}", file=sys.stderr)

    def _commit_in_background(self) -> bool:
        """False where the commit before is still under way."""
        if self.committing is not None and self.committing.is_alive():
            return False
        self.committing = self._start(lambda: self._commit("checkpoints"))
        return True

    def _start(self, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def _commit(self, name: str) -> None:
        try:
            self.volumes[name].commit()
        except Exception as error:
            # The commit is done before the reload behind it, which open files of the running job prevent.
            if "open" not in str(error):
                print(f"runner: volume {name} was not committed: {error}", file=sys.stderr, flush=True)

    def _marker(self) -> tuple[int, int] | None:
        """Changes when a checkpoint is complete."""
        try:
            status = (self.folder / "latest").stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def _recorded(self) -> str | None:
        """What the trainer wrote of this very attempt; None where it came to write nothing."""
        try:
            record = json.loads((self.folder / "run.json").read_text())
            began = record["attempts"][-1]["started"] >= self.ledger.attempts[-1].started
            return str(record["status"]) if began and self.job["job"] == "train" else None
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
        """Whether `runner stop` wants this call to end. Read past the mount, which would need a reload."""
        try:
            path = f"{self.job['run']}/{STOP}"
            text = b"".join(self.volumes["checkpoints"].read_file(path))
            return json.loads(text).get("call") == self.call
        except Exception:  # mostly: there is no such file
            return False


def _place_in_cluster(nodes: int) -> tuple[int, str]:
    """This container's rank, and the address of the first."""
    if nodes < 2:
        return 0, ""
    cluster = modal.Cluster.from_context()
    return cluster.container_rank(), cluster.container_ips()[0]


def _gpu_name() -> str:
    """As nvidia-smi names the first one; '' without one."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else ""


def _price(gpu: str, usd_per_hour: dict[str, float]) -> float:
    """The price of what was given. Where the name tells none of those asked for, the dearest: a cap holds."""
    plain = gpu.upper().replace(" ", "").replace("-", "")
    for name, price in usd_per_hour.items():
        model, _, memory = name.rpartition("-") if name.endswith("GB") else (name, "", "")
        model = model.rstrip("!+").replace("-", "")
        if model and re.search(rf"{model}(?!\d)", plain) and memory in plain:
            return price
    return max(usd_per_hour.values())


def _uptime() -> float:
    """Seconds since this container's first process began: it is paid for from then on."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, min(up - ticks / os.sysconf("SC_CLK_TCK"), 600.0))
    except (OSError, ValueError, IndexError):
        return 0.0
