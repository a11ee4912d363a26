"""Whether torch.compile pays. Pure, but for a look for a compiler."""

from __future__ import annotations

import shutil

from job.batch_schedule import tokens_before
from job.network_size import flops_per_token
from job.recipe import Recipe

# The FLOPs of a recipe from which on it pays. On 2 CPU cores compiling takes 20-40 s and then saves a third of each
# step: 10 minutes there (docs/log.md). On an H200 it takes 40 to 60 s at 12 layers and 1e16 take 25 s compiled, about twice as
# long uncompiled: an estimate, `bench/gpu.sh fourth` measures it.
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
