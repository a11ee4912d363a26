"""Deadlines and watchdogs that end an attempt before the job does, and the notifications about it.

Three limits apply: Modal's own, at most 24 hours per attempt, after which another attempt resumes;
and the run's --timeout and --max-cost over all attempts, after which none does. The watchdogs end
a run that costs money without making progress: stalled, or with an idle GPU. They run in
a separate process in the container, so that a job that hangs can't block them. Standard library
only.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from threading import Event, Thread

from job.metrics import query_gpus
from job.notify import Message, Notifier
from job.run_record import EndReason
from runner.runs.attempts import AttemptLog

MAX_ATTEMPT_S = 24 * 3600.0  # Modal's limit
MAX_RETRIES = 10  # Modal's limit

# 11 attempts, an hour of each left for starting and stopping.
LONGEST_RUN_S = (MAX_RETRIES + 1) * 23 * 3600.0

# Time for the last checkpoint to be written and committed: at most this long, and at most this
# share of the attempt. Once the run has shown how long it takes to stop, that measurement counts.
MAX_MARGIN_S = 300.0
MARGIN_SHARE = 0.1

# The margin from a measurement: this many times the measured seconds, plus a minimum.
SAFETY_FACTOR = 3.0
MIN_MARGIN_S = 2.0


@dataclass(frozen=True)
class Deadline:
    """The times to ask the job to stop and to kill it, in seconds since the epoch."""

    stop: float
    kill: float
    reason: EndReason


def with_measured_margin(deadline: Deadline, started: float, stopping_s: float) -> Deadline:
    """Return ``deadline`` with a ``stop`` that leaves enough time to stop.

    ``stopping_s`` is the measured time to notice the request, write a checkpoint and commit it.
    """
    needed = SAFETY_FACTOR * stopping_s
    margin = max(needed, _default_margin(deadline.kill - started))
    return replace(deadline, stop=deadline.kill - min(MAX_MARGIN_S, MIN_MARGIN_S + needed, margin))


def _default_margin(span: float) -> float:
    return min(MAX_MARGIN_S, MARGIN_SHARE * span)


def next_deadline(
    started: float,
    attempt_s: float,
    total_s: float,
    used_s: float,
    max_cost: float | None,
    spent: float,
    usd_per_hour: float,
) -> Deadline:
    """Return the earliest of the three limits for an attempt that started at ``started``.

    ``used_s`` seconds and ``spent`` dollars belong to earlier attempts.
    """
    limits = [(max(0.0, total_s - used_s), EndReason.RUN_TIMEOUT)]
    if max_cost is not None and usd_per_hour > 0:
        limits.append((max(0.0, max_cost - spent) * 3600 / usd_per_hour, EndReason.BUDGET))
    span, reason = min(limits)
    if span > attempt_s:
        span, reason = attempt_s, EndReason.ATTEMPT_TIMEOUT
    else:  # end before Modal's limit, which would start another attempt for the last minutes
        span = min(span, attempt_s - _default_margin(attempt_s))
    return Deadline(started + span - _default_margin(span), started + span, reason)


STALL_FACTOR = 10.0  # a pause this many times the usual interval between metrics is a stall
RECENT_INTERVALS = 50  # whose median is the usual interval

BUSY_PERCENT = 5  # GPU utilization from which it counts as busy; a desktop's drawing stays below

POLL_INTERVAL_S = 30.0
MIN_POLLS = 6  # of the GPUs before one is reported as idle


@dataclass
class StallWatchdog:
    """Watches the growth of a run's metrics. Never reports if ``after_s`` is None."""

    metrics: Path
    after_s: float | None  # shortest pause that can be a stall
    intervals: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_INTERVALS))
    _size: int = -1
    _grew: bool = False  # during this attempt
    _grew_at: float = 0.0

    def check(self, now: float) -> str:
        """Return why to stop the run, or ''. ``now`` is a monotonic time in seconds."""
        if self.after_s is None:
            return ""
        size = _file_size(self.metrics)
        if size != self._size:
            if self._grew:
                self.intervals.append(now - self._grew_at)
            self._grew = self._size >= 0  # the first size seen belongs to an earlier attempt
            self._size, self._grew_at = size, now
            return ""
        if self._size <= 0:  # before the first step: reading data and compiling
            return ""
        usual = median(self.intervals) if self.intervals else 0.0
        waited = now - self._grew_at
        if waited < max(self.after_s, STALL_FACTOR * usual):
            return ""
        before = f"; until then, there was one every {usual:.1f} s" if self.intervals else ""
        remedy = "resources.stop_stalled_after=null keeps waiting"
        return f"no step for {waited:.0f} s{before} ({remedy})"


@dataclass
class IdleGpuWatchdog:
    """Watches the utilization of the machine's GPUs. Never reports if ``after_s`` is None."""

    after_s: float | None
    _busy_at: dict[int, float] = field(default_factory=dict)  # by GPU

    @property
    def poll_interval_s(self) -> float:
        """Return the seconds between two measurements."""
        return min(POLL_INTERVAL_S, (self.after_s or POLL_INTERVAL_S * MIN_POLLS) / MIN_POLLS)

    def check(self, utilization: list[int], now: float) -> str:
        """Return why to stop the run, or ''. ``utilization`` is the percentage of each GPU."""
        for gpu, percent in enumerate(utilization):
            if percent >= BUSY_PERCENT or gpu not in self._busy_at:
                self._busy_at[gpu] = now
        idle = {gpu: now - since for gpu, since in self._busy_at.items()}
        longest = max(idle, key=lambda gpu: idle[gpu], default=None)
        if self.after_s is None or longest is None or idle[longest] < self.after_s:
            return ""
        return (
            f"GPU {longest} was idle for {idle[longest]:.0f} s "
            "(resources.stop_idle_gpu_after=null keeps waiting)"
        )


class Watchdogs:
    """Both watchdogs of one attempt."""

    def __init__(
        self, metrics: Path, stalled_after_s: float | None, idle_after_s: float | None
    ) -> None:
        self.stall = StallWatchdog(metrics, stalled_after_s)
        self._idle_gpu = IdleGpuWatchdog(idle_after_s)
        self._idle_message = ""
        self._closed = Event()
        if idle_after_s is not None:  # in a thread: nvidia-smi can take seconds to answer
            Thread(target=self._watch_gpus, daemon=True).start()

    def check(self) -> tuple[EndReason, str] | None:
        """Return why to stop the run, as an end reason and a message; None if all is well."""
        if message := self.stall.check(time.monotonic()):
            return EndReason.STALLED, message
        return (EndReason.IDLE_GPU, self._idle_message) if self._idle_message else None

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _watch_gpus(self) -> None:
        while not self._idle_message:
            utilization = gpu_utilization()
            if not utilization:
                return
            self._idle_message = self._idle_gpu.check(utilization, time.monotonic())
            if self._closed.wait(self._idle_gpu.poll_interval_s):
                return


def gpu_utilization() -> list[int]:
    """Return the utilization of each GPU in percent; empty if nvidia-smi does not report it."""
    try:
        return [int(percent) for percent in query_gpus("utilization.gpu")]
    except ValueError:
        return []


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


CAP_WARNING = 0.8  # of --max-cost


class AttemptNotifier(Notifier):
    """Reports new attempts, costs and every end; the process that watches the job sends them."""

    def resumed(self, log: AttemptLog) -> None:
        """Report that the newest attempt continues its call, and how the one before ended."""
        before = log.attempts[-2] if len(log.attempts) > 1 else None
        if before is not None and before.call == log.call:
            self.send(f"resumes as attempt {len(log.attempts)}: {before.reason}")

    def warn_of_cap(self, log: AttemptLog, cap: float | None) -> None:
        """Report once that most of --max-cost is spent."""
        cost = log.cost(time.time())
        if cap is not None and cost >= CAP_WARNING * cap and log.warned_cap != cap:
            log.warned_cap = cap
            self.send(f"has spent ${cost:.2f} of its ${cap:.2f} limit")

    def ended(self, log: AttemptLog) -> Message | None:
        """Report the end of the call; nothing while another attempt follows."""
        if log.status is None:
            return None
        detail = log.attempts[-1].detail
        texts: dict[str, str] = {
            EndReason.FINISHED: "finished",
            EndReason.FAILED: f"failed with exit status {log.status}",
            EndReason.STOPPED: "was stopped",
        }
        other = f"stopped: {log.reason}{f': {detail}' if detail else ''}"
        return self.send(texts.get(log.reason, other))
