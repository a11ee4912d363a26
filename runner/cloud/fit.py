"""Whether a recipe fits in a GPU's memory, and what does where it does not. Pure, and free of torch.

The tensors are counted by job/memory.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from job.compiling import should_compile
from job.memory import chosen_micro_batch, largest_micro_batch, micro_batch_size, training_memory
from job.recipe import Recipe
from runner.cloud.gpu_kinds import BY_NAME


@dataclass(frozen=True)
class Fit:
    """A recipe on one kind of GPU. ``micro_batch`` is what the recipe asks for or, with auto, what was chosen;
    ``largest`` the most that fits, None where not even one sequence does. GB are 1e9 bytes."""

    gpu: str
    needed_gb: float
    there_gb: float
    micro_batch: int
    grad_accum_steps: int
    largest: int | None
    accumulates: int | None  # grad_accum_steps with ``largest``

    @property
    def fits(self) -> bool:
        """Whether it is expected to run as the recipe stands."""
        return self.needed_gb <= self.there_gb

    @property
    def advice(self) -> str:
        """What to do where it does not fit; '' where it does."""
        if self.fits:
            return ""
        if self.largest is None:
            return "not even one sequence fits; take a larger GPU, activation_checkpointing=true or a smaller network"
        return (
            f"write micro_batch={self.largest}, accumulated {self.accumulates} times for the same batch "
            f"(or micro_batch=auto), or take a larger GPU"
        )


def uses_bf16(recipe: Recipe, gpu: str) -> bool:
    """Whether the trainer's autocast will be bfloat16 there."""
    return recipe.train.dtype == "bfloat16" or (recipe.train.dtype == "auto" and BY_NAME[gpu].bf16)


def fit(recipe: Recipe, gpu: str, processes: int) -> Fit:
    """How ``recipe`` fits where ``processes`` GPUs of that kind share a step."""
    there_gb, bf16 = BY_NAME[gpu].memory_gb, uses_bf16(recipe, gpu)
    room = there_gb * 1e9
    compiled, _ = should_compile(recipe, "cuda")
    share = max(1, recipe.sequences_per_step // processes)
    size = micro_batch_size(share, chosen_micro_batch(recipe, room, processes, bf16, compiled))
    needed = training_memory(recipe, size, processes, bf16, compiled).on_gpu
    largest = largest_micro_batch(recipe, room, processes, bf16, compiled)
    return Fit(
        gpu,
        needed / 1e9,
        there_gb,
        size,
        share // size,
        largest,
        share // largest if largest is not None else None,
    )


def smallest(names: tuple[str, ...]) -> str:
    """The one with the least memory: what fits there fits on all."""
    return min(names, key=lambda name: BY_NAME[name].memory_gb)


def fits(recipe: Recipe, names: tuple[str, ...], processes: int) -> str:
    """The row of the plan: ``about 9.1 of 80 GB on H100 …``, with what to do where it does not fit."""
    found = fit(recipe, smallest(names), processes)
    text = f"about {found.needed_gb:.2g} of {found.there_gb:g} GB on {found.gpu} (an estimate)"
    text += f" with micro_batch {found.micro_batch}, accumulated {found.grad_accum_steps} times"
    if not found.fits:
        return f"{text}: it will not fit; {found.advice}"
    if found.needed_gb > 0.9 * found.there_gb:
        return f"{text}: tight; where it runs out of memory, the trainer halves micro_batch by itself"
    return text
