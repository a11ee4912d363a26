"""Device speeds: datasheet FLOP/s, measured FLOP/s, and whether torch.compile pays."""

from __future__ import annotations

import os
import platform
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from job.cpu import available_cpus, choose_threads
from job.memory import chosen_micro_batch, flops_per_token
from job.paths import VolumePaths
from job.schedules import tokens_before
from job.step_folders import step_folder, steps
from job.typed_json import read_object

if TYPE_CHECKING:
    from job.recipe import Recipe

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
    try:
        models = re.findall(
            r"^model name\s*: (.*)$",
            Path("/proc/cpuinfo").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    except OSError:
        models = []
    return f"{models[0] if models else platform.machine()} of {os.cpu_count()}, {name}"


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
