"""How long the whole run will take, measured on its own first steps.

    pace = Pace(config, first_step=0, eval_tokens=65536)
    pace.steps(10, last=60, seconds=1.2); pace.evaluation(0.8); pace.checkpoint(0.05)
    pace.left(step=60)      # seconds to the last step; None before 50 steps were measured

The first steps are left out: they compile, fill caches and find the fastest kernels. What is measured is the time of
a token, not of a step: with a batch_schedule the steps to come are longer ones.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from pathlib import Path

from job.memory import flops_per_token
from job.paths import VolumePaths
from job.recipe import Recipe
from job.schedules import tokens_before

# Dense bf16 FLOP/s from the makers' datasheets, by whole words of the name that the driver gives: an RTX A1000 is no A100.
# The first that fits counts, for `H100` stands in `H100 PCIe` too.
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
    "A10G": 70e12,  # as AWS has it: d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf
    "L4": 121e12,
    "T4": 65e12,  # fp16; it has no bf16
}


def datasheet_flops(name: str) -> float | None:
    """Dense bf16 FLOP/s of the GPU that the driver, or a launch (``A100-80GB``, ``H100!``), calls ``name``; None
    where the table does not know it."""
    spaced = name.replace("-", " ")
    return next(
        (flops for words, flops in PEAK_FLOPS.items() if re.search(rf"\b{words}\b", spaced)), None
    )


def device_label(name: str) -> str:
    """``name`` as torch's side calls the device; of a CPU its model too, as the cache may go to another machine."""
    if not name.startswith("cpu"):
        return name
    try:
        models = re.findall(
            r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        )
    except OSError:
        models = []
    return f"{models[0] if models else platform.machine()} of {os.cpu_count()}, {name}"


def place(name: str, locations: VolumePaths) -> Path:
    """The file of the device of that name."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_label(name).lower()).strip("-")
    return locations.cache / "roofline" / f"{slug}.json"


def remembered(name: str, number_format: str, locations: VolumePaths) -> float | None:
    """FLOP/s that a product in `bfloat16` or `float32` reached there; None where nobody measured."""
    try:
        return float(json.loads(place(name, locations).read_text())[number_format])
    except (OSError, ValueError, KeyError, TypeError):
        return None


# FLOPs of a recipe from which compiling pays. On 2 CPU cores it takes 20 to 40 s and then saves a
# third of each step; 1e14 FLOPs take 10 minutes there. On an H200 compiling 12 layers takes 40 to
# 60 s, and 1e16 FLOPs take 25 s compiled, about twice as long uncompiled. The H200 figures are
# estimates; `bench/gpu.sh fourth` measures them.
PAYS_FROM_FLOPS = {"cpu": 1e14, "cuda": 1e16}


def should_compile(recipe: Recipe, device: str) -> tuple[bool, str]:
    """Whether to compile on ``device`` (cuda, mps or cpu), and why. A function of recipe and machine alone, so that a
    resume agrees."""
    if recipe.train.compile != "auto":
        return recipe.train.compile, "the recipe says so"
    if device == "mps":
        return False, "not on mps"
    if device == "cpu" and shutil.which("g++") is None:
        return False, "no C++ compiler here"
    flops = flops_per_token(recipe) * tokens_before(recipe.train, recipe.train.max_steps)
    if flops < PAYS_FROM_FLOPS[device]:
        return False, "the run is too short for it to pay"
    return True, "the run is long enough for it to pay"
