"""This process on a CPU: how many threads it should use, and its memory. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TypeAlias

# A run keeps its number of threads, so a process that works for a moment must not decide it.
SAMPLES, SAMPLE_S = 5, 0.1  # the kernel counts in units of 0.01 s
# Below this, threads wait for each other longer than they compute: a product of a small network
# takes a thread less than a millisecond.
MIN_FLOPS_PER_THREAD = 5e8

_Times: TypeAlias = dict[int, tuple[int, int]]  # CPU -> idle time, whole time

CGROUP = Path("/sys/fs/cgroup")
STAT = Path("/proc/stat")


def available_cpus() -> int:
    """Return the CPUs that this process may use: its affinity, and its container's limit."""
    return max(1, int(min(len(_allowed()), _cgroup_limit())))


def choose_threads(flops: float, free: float) -> int:
    """Return the threads for steps of ``flops`` each: at most as many as there are free CPUs.

    Next to other busy processes more threads than free CPUs are slower than fewer: they wait for
    the one that is not running.
    """
    by_size = int(flops / MIN_FLOPS_PER_THREAD)
    return max(1, min(available_cpus(), round(free), by_size))


def free_cpus() -> float:
    """Return how many of the allowed CPUs others leave free right now; all if it is unknown.

    Takes half a second, in which this process may work.
    """
    samples = [(_times(), time.process_time())]
    for _ in range(SAMPLES):
        time.sleep(SAMPLE_S)
        samples.append((_times(), time.process_time()))
    if not samples[0][0]:
        return float(len(_allowed()))
    return median(
        _free(before, after, used - used_before)
        for (before, used_before), (after, used) in pairwise(samples)
    )


def _free(before: _Times, after: _Times, own_s: float) -> float:
    own = own_s * os.sysconf("SC_CLK_TCK") / max(1, len(after))
    return sum(
        (idle - before[cpu][0] + own) / max(1, total - before[cpu][1])
        for cpu, (idle, total) in after.items()
        if cpu in before
    )


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))  # macOS


def _times() -> _Times:
    """Return the times of each allowed CPU so far; {} without /proc."""
    times = {}
    with suppress(OSError, ValueError):
        for line in STAT.read_text(encoding="utf-8").splitlines():
            name, *fields = line.split()
            if name.startswith("cpu") and name != "cpu" and int(name[3:]) in _allowed():
                values = [int(field) for field in fields[:8]]  # the rest is part of these
                times[int(name[3:])] = values[3] + values[4], sum(values)
    return times


def _cgroup_limit() -> float:
    """Return the container's limit of CPUs, as in `docker run --cpus`; inf without a limit."""
    with suppress(OSError, ValueError):  # version 2
        quota, period = (CGROUP / "cpu.max").read_text(encoding="utf-8").split()
        return float("inf") if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):  # version 1
        quota, period = (
            (CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="utf-8")
            for name in ("quota", "period")
        )
        return int(quota) / int(period) if int(quota) > 0 else float("inf")
    return float("inf")


def keep_freed_memory() -> None:
    """Stop glibc's malloc from returning freed memory to the system.

    By default a step of a small network causes up to 2,700 page faults: 5 to 10% of its time.
    """
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    with suppress(OSError, AttributeError):  # another libc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def peak_memory_bytes() -> int:
    """Return this process's largest resident set so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere
