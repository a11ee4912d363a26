"""Errors that end a training run: non-finite losses and too little memory."""

from __future__ import annotations

from pathlib import Path

from job.exit_status import ExitStatus, UserError
from job.recipe import Recipe


class NonFiniteLoss(UserError):
    """The loss, the gradient or the weights are NaN or infinite."""

    status = ExitStatus.JOB_FAILED


class OutOfMemory(UserError):
    """The device's memory is too small for a step; the message says what to change."""

    status = ExitStatus.JOB_FAILED


def last_checkpoint_advice(folder: Path | None) -> str:
    """Return the advice to start from the newest checkpoint, if there is one."""
    return (
        f"; {folder.name} is intact: train.init_from={folder} starts from its weights"
        if folder
        else ""
    )


def nonfinite_loss(
    step: int, loss: float, norm: float, windows: str, recipe: Recipe, good: str
) -> str:
    """Return the message for ``step`` (from 1), whose batch starts at the tokens ``windows``."""
    return (
        f"step {step}: the loss is {loss} and the gradient norm {norm}; its batch starts at tokens "
        f"{windows} of {recipe.data.dataset}. No checkpoint was written after it{good}. "
        f"{_advice(recipe)}"
    )


def nonfinite_weights(step: int, recipe: Recipe, good: str) -> str:
    """Return the message for non-finite weights after ``step``."""
    return f"the weights after step {step} are NaN or infinite{good}. {_advice(recipe)}"


def _advice(recipe: Recipe) -> str:
    return f"Use a lower lr (now {recipe.train.lr:g}) or more warmup_steps, with a new --name"


def out_of_memory_message(device: str, micro_batch: int, smaller: int, why: str) -> str:
    """Return the message for too little memory for a ``micro_batch`` that can't be halved."""
    if micro_batch == 1:
        return (
            f"{device} has too little memory for one sequence ({why}). Use a larger GPU, "
            "activation_checkpointing=true, or a smaller n_layer, n_embd or block_size; "
            "`runner estimate` shows what fits"
        )
    return (
        f"{device} has too little memory for micro_batch {micro_batch} ({why}). Run it again with "
        f"micro_batch={smaller}; the batch size and the result stay the same"
    )


def smaller_micro_batch_message(smaller: int, micro_batch: int, times: int) -> str:
    """Return the message for a micro-batch that was too large and is now ``smaller``."""
    return (
        f"out of memory with micro_batch {micro_batch}: continuing with {smaller}"
        f"{micro_batches_text(times)}; the batch stays the same. "
        f"Set micro_batch: {smaller} in the recipe"
    )


def micro_batches_text(times: int) -> str:
    """Return how a process divides its part of the batch; nothing if it does not."""
    return f", in {times} micro-batches" if times > 1 else ""


def unusable_gpu_message(cuda: str) -> str:
    """Return the message for a GPU that torch, built for this version of ``cuda``, can't use."""
    return (
        f"torch (CUDA {cuda}) can't use this machine's GPU: its driver may be too old "
        "(`nvidia-smi` shows the version). Update the driver, or use --device cpu"
    )
