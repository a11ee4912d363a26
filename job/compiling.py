"""Whether torch.compile pays. Pure, but for a look for a compiler."""

from __future__ import annotations

import shutil

from job.recipe import Recipe

# On 2 CPU cores compiling takes 20-40 s and then saves a third of each step, so it pays from a
# recipe of about 1e14 FLOPs, which are 10 minutes there (docs/log.md).
COMPILE_PAYS_FROM_FLOPS = 1e14


def should_compile(recipe: Recipe, device: str, flops: float) -> tuple[bool, str]:
    """Whether to compile, and why. A function of recipe and machine alone, so that a resume agrees.

    ``device`` is cuda, mps or cpu; ``flops`` is what the whole recipe costs.
    """
    if recipe.train.compile != "auto":
        return recipe.train.compile, "the recipe says so"
    if device == "mps":
        return False, "not on mps"
    if device == "cpu" and shutil.which("g++") is None:
        return False, "no C++ compiler here"
    if device == "cpu" and flops < COMPILE_PAYS_FROM_FLOPS:
        return False, "the run is too short for it to pay"
    return True, "the run is long enough for it to pay"
