"""Watchdogs that end a run which costs money without making progress: stalled, or with an idle GPU.

They run in the container beside the job, not in it, so that a job that hangs can't block them.
Standard library only.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from threading import Event, Thread

from job.run_record import EndReason
from runner.targets.modal.container import query_gpus

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
        return (
            f"no step for {waited:.0f} s, but one every {usual:.1f} s before "
            "(resources.stop_stalled_after=null keeps waiting)"
        )


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
