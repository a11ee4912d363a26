"""The machine of a job: free CPUs, memory, speed of its devices, and whether torch.compile pays."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import shutil
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, TypeAlias

from job.memory import chosen_micro_batch, flops_per_token
from job.paths import VolumePaths
from job.schedules import tokens_before
from job.step_folders import step_folder, steps
from job.typed_json import read_object

if TYPE_CHECKING:
    from job.recipe import Recipe

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


# Dense bf16 FLOP/s from the datasheets, by whole words of the driver's name: an RTX A1000 is not an
# A100. The first match wins: `H100 PCIe` contains `H100`.
PEAK_FLOPS = {
    "B300": 2.25e15,
    "B200": 2.25e15,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "RTX PRO 6000": 504e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "A10G": 70e12,  # NVIDIA's datasheet of the AWS variant, 2022-02-17
    "L4": 121e12,
    "T4": 65e12,  # fp16: it lacks bf16
}


def datasheet_flops(name: str) -> float | None:
    """Return the dense bf16 FLOP/s of the GPU ``name``; None if unknown.

    ``name`` is the driver's, or a launch's (``A100-80GB``, ``H100!``).
    """
    spaced = name.replace("-", " ")
    return next(
        (flops for words, flops in PEAK_FLOPS.items() if re.search(rf"\b{words}\b", spaced)), None
    )


def device_label(name: str) -> str:
    """Return ``name``; for a CPU with its model, as the cache may move to another machine."""
    if not name.startswith("cpu"):
        return name
    model = None
    with suppress(OSError):
        cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        model = re.search(r"^model name\s*: (.*)$", cpus, re.MULTILINE)
    return f"{model[1] if model else platform.machine()} of {os.cpu_count()}, {name}"


def threads_for(recipe: Recipe, run: Path, free_cpus: float) -> int:
    """Return the threads for training on a CPU: those of the run's checkpoint, else by free CPUs.

    Sums of other parts round differently, so a run resumes exactly only with the same number.
    """
    for step in reversed(steps(run)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            state = read_object((step_folder(run, step) / "state.json").read_bytes())
            return max(1, min(int(state["threads"]), available_cpus()))
    tokens = chosen_micro_batch(recipe, None) * recipe.model.block_size
    return choose_threads(flops_per_token(recipe) * tokens, free_cpus)


def speed_file(name: str, locations: VolumePaths) -> Path:
    """Return the file with the device's measured speeds."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_label(name).lower()).strip("-")
    return locations.cache / "roofline" / f"{slug}.json"


def measured_product_flops(name: str, number_format: str, locations: VolumePaths) -> float | None:
    """Return the measured FLOP/s of a product in `bfloat16` or `float32`; None if not measured."""
    try:
        return float(read_object(speed_file(name, locations).read_bytes())[number_format])
    except (OSError, ValueError, KeyError, TypeError):
        return None


# FLOPs of a recipe from which compiling pays. On 2 CPU cores it takes 20 to 40 s and then saves a
# third of each step; 1e14 FLOPs take 10 minutes there. On an H200 compiling 12 layers takes 40 to
# 60 s, and 1e16 FLOPs take 25 s compiled, about twice as long uncompiled. The H200 figures are
# estimates; `bench/gpu.sh fourth` measures them.
MIN_FLOPS_TO_COMPILE = {"cpu": 1e14, "cuda": 1e16}


def should_compile(recipe: Recipe, device: str) -> tuple[bool, str]:
    """Return whether to compile on ``device`` (cuda, mps or cpu), and why.

    Depends on recipe and machine alone, so that a resumed run decides the same.
    """
    if recipe.train.compile != "auto":
        return recipe.train.compile, "the recipe says so"
    if device == "mps":
        return False, "not on mps"
    if device == "cpu" and shutil.which("g++") is None:
        return False, "this machine has no C++ compiler"
    flops = flops_per_token(recipe) * tokens_before(recipe.train, recipe.train.max_steps)
    if flops < MIN_FLOPS_TO_COMPILE[device]:
        return False, "the run is too short for it to pay"
    return True, "the run is long enough for it to pay"
