"""What ends a run by itself: numbers that are none, and a memory that is too small. The words for both."""

from __future__ import annotations

from pathlib import Path

from job.exit_status import ExitStatus, UserError
from job.recipe import Recipe


class NonFiniteLoss(UserError):
    """The loss, the gradient or the weights are no longer numbers."""

    status = ExitStatus.JOB_FAILED


class OutOfMemory(UserError):
    """The device's memory is too small for a step; the text says what to change."""

    status = ExitStatus.JOB_FAILED


def last_good(folder: Path | None) -> str:
    """Where to go on from: the newest checkpoint's folder, if anything was written."""
    return (
        f"; {folder.name} is sound: train.init_from={folder} begins with its weights"
        if folder
        else ""
    )


def nonfinite_loss(
    step: int, loss: float, norm: float, windows: str, recipe: Recipe, good: str
) -> str:
    """The loss or the gradient of ``step`` (from 1), whose batch begins at the tokens ``windows``."""
    return (
        f"the loss is {loss} and the gradient's norm {norm} in step {step}, whose batch begins at tokens {windows} "
        f"of {recipe.data.dataset}. No checkpoint was written after it{good}. {_advice(recipe)}"
    )


def nonfinite_weights(step: int, recipe: Recipe, good: str) -> str:
    """The weights after ``step``."""
    return f"the weights after step {step} are no longer numbers{good}. {_advice(recipe)}"


def _advice(recipe: Recipe) -> str:
    return f"Lower lr (now {recipe.train.lr:g}), or lengthen warmup_steps, under a new --name"


def too_small(device: str, micro_batch: int, smaller: int, why: str) -> str:
    """There is no going on with ``micro_batch``: not even one sequence fits, or other processes wait for this one."""
    if micro_batch == 1:
        return (
            f"the memory of {device} is too small even for one sequence at once ({why}). Take a larger GPU, "
            "activation_checkpointing=true, or a smaller n_layer, n_embd or block_size; `runner estimate` shows what fits where"
        )
    return (
        f"the memory of {device} is too small for micro_batch {micro_batch} ({why}). Type the same again with "
        f"micro_batch={smaller}: the batch, and so the result, stays the same"
    )


def unusable(cuda: str) -> str:
    """The driver has a GPU, and torch, built for this version of ``cuda``, sees none."""
    return (
        f"there is a GPU, and torch (CUDA {cuda}) can't use it: its driver may be too old; `nvidia-smi` shows it. Mend "
        "that, or take --device cpu"
    )
