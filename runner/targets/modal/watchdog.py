"""What ends a run that only costs: one that has come to a standstill, and a GPU that does nothing.

Standard library only: the body asks inside the container, beside the job and not in it, so that a job that hangs
can't keep its guard from speaking.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from threading import Event, Thread

from job.run_record import EndReason
from runner.targets.modal.container import ask_gpus

STALLED, IDLE = EndReason.STALLED, EndReason.IDLE_GPU

# No step for so many times the usual. Measured between two signs, each of them log_every steps or an evaluation.
TIMES_USUAL = 10.0

RECENT = 50  # signs that it is made from

BUSY = 5  # percent of utilisation from which a GPU counts as at work: a desktop's drawing is below

SAMPLE = 30.0  # seconds between two looks at the GPUs

LOOKS = 6  # at least so many looks in the time after which an idle GPU is reported


@dataclass
class StallWatchdog:
    """Watches how a run's metrics grow. ``after``: seconds that are forgiven in any case; None: never speaks."""

    metrics: Path
    after: float | None
    size: int = -1
    has_spoken: bool = False
    seen: float = 0.0
    between: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def look(self, now: float) -> str:
        """Why to stop, in words; '' where all is well. ``now`` in seconds of any clock that only goes on."""
        if self.after is None:
            return ""
        size = _size(self.metrics)
        if size != self.size:
            if self.has_spoken:
                self.between.append(now - self.seen)
            self.has_spoken = (
                self.size >= 0
            )  # what was there at the first look is an earlier attempt's
            self.size, self.seen = size, now
            return ""
        if self.size <= 0:  # before the first steps data is read, and the network compiled
            return ""
        # A run that is fast, and hangs early, shows no two signs apart: then ``after`` alone counts.
        usual, waited = median(self.between) if self.between else 0.0, now - self.seen
        if waited < max(self.after, TIMES_USUAL * usual):
            return ""
        return (
            f"no step for {waited:.0f} s, where a sign every {usual:.1f} s was usual "
            "(resources.stop_stalled_after=null would wait)"
        )


@dataclass
class IdleGpuWatchdog:
    """Watches the utilisation of this machine's GPUs. ``after``: seconds at rest; None: never speaks."""

    after: float | None
    busy: dict[int, float] = field(default_factory=dict)  # GPU → when it was last at work

    @property
    def every(self) -> float:
        """Seconds between two looks."""
        return min(SAMPLE, (self.after or SAMPLE * LOOKS) / LOOKS)

    def look(self, utilisation: list[int], now: float) -> str:
        """Why to stop, in words, by the percent of each GPU ``now``; '' where all is well."""
        for gpu, percent in enumerate(utilisation):
            if percent >= BUSY or gpu not in self.busy:
                self.busy[gpu] = now
        idle = {gpu: now - since for gpu, since in self.busy.items()}
        longest = max(idle, key=lambda gpu: idle[gpu], default=None)
        if self.after is None or longest is None or idle[longest] < self.after:
            return ""
        return (
            f"GPU {longest} has done nothing for {idle[longest]:.0f} s "
            "(resources.stop_idle_gpu_after=null would wait)"
        )


class Watchdogs:
    """Both, for one attempt; ``why`` is asked often and looks as seldom as it must."""

    def __init__(
        self, metrics: Path, stalled_after: float | None, idle_after: float | None
    ) -> None:
        self.stall = StallWatchdog(metrics, stalled_after)
        self.idle = IdleGpuWatchdog(idle_after)
        self.idle_words = ""
        self.ended = Event()
        if (
            idle_after is not None
        ):  # nvidia-smi may take seconds to answer, and the clock must go on
            Thread(target=self._watch_gpus, daemon=True).start()

    def why(self) -> tuple[str, str]:
        """(reason, what was seen); ('', '') where all is well."""
        if words := self.stall.look(time.monotonic()):
            return STALLED, words
        return (IDLE, self.idle_words) if self.idle_words else ("", "")

    def close(self) -> None:
        """The job is over."""
        self.ended.set()

    def _watch_gpus(self) -> None:
        while not self.idle_words:
            found = utilisation()
            if not found:
                return  # no GPU, or none that tells
            self.idle_words = self.idle.look(found, time.monotonic())
            if self.ended.wait(self.idle.every):
                return


def utilisation() -> list[int]:
    """Percent of each GPU's time in which it worked, by nvidia-smi; empty where it does not say."""
    try:
        return [int(percent) for percent in ask_gpus("utilization.gpu")]
    except ValueError:
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
