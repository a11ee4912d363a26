"""How long a run will take, estimated from its FLOPs. Pure: no look at a GPU.

    hours = steps · tokens a step · FLOPs a token / (GPUs · peak FLOP/s · MFU)

MFU, the share of the datasheet's peak that a trainer reaches, is a table: what others measured with the same parts
(torch.compile, fused attention, bfloat16), and where nobody did, a cautious value that says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from job.memory import (
    chosen_micro_batch,
    flops_per_token,
    largest_micro_batch,
    micro_batch_size,
    network_size,
    training_memory,
)
from job.recipe import Recipe
from job.schedules import tokens_before
from job.speed import datasheet_flops, should_compile
from runner.errors import usage
from runner.format import dollars, rough_duration
from runner.pricing.gpus import BY_NAME, GpuRequest
from runner.pricing.prices import RentedMachine

REFERENCE_WIDTH = 768

# Narrow networks reach less: nanoGPT's shakespeare_char, 384 wide, takes 3 minutes on an A100, a tenth of the peak
# and a third of 124M's share: the width to the power of 1.6. Wide ones reach more: torchtitan's 8B, 4,096
# wide, 0.41 on an H100 (6,667 tokens/s compiled): to the power of 0.13.
NARROW_POWER, WIDE_POWER = 1.6, 0.13

MOST_MFU = 0.5

# Launching the kernels of one pass through a small network takes this long however fast the GPU is, in seconds
# for each block. It keeps the estimate of a toy from being absurd.
SECONDS_PER_BLOCK = 0.0008

# Start of the container, torch's import and its compiler.
OVERHEAD_SECONDS = 120.0

# An evaluation is a forward pass alone: a third of the FLOPs of training.
FORWARD_SHARE = 1 / 3

AGAIN = 1 + FORWARD_SHARE  # with activation checkpointing the forward pass is made twice

# Tokens of an evaluation where the recipe reads the whole validation set, whose size a plan does not know.
EVAL_TOKENS = 1_000_000


def mfu(recipe: Recipe, gpu: str) -> float:
    """The share of the peak that this network is expected to reach there."""
    ratio = recipe.model.n_embd / REFERENCE_WIDTH
    return min(MOST_MFU, BY_NAME[gpu].mfu * ratio ** (NARROW_POWER if ratio < 1 else WIDE_POWER))


def tokens_per_second(recipe: Recipe, gpu: str, gpus: int) -> float:
    """Expected training speed of ``gpus`` together."""
    peak = datasheet_flops(gpu)
    assert peak is not None  # of every GPU that can be asked for
    if not uses_bf16(recipe, gpu):
        peak *= BY_NAME[gpu].float32_share
    work = flops_per_token(recipe) * (AGAIN if recipe.train.activation_checkpointing else 1)
    by_flops = work / (gpus * peak * mfu(recipe, gpu))
    passes = fit(recipe, gpu, gpus).grad_accum_steps
    by_launches = (
        passes * recipe.model.n_layer * SECONDS_PER_BLOCK / recipe.train.global_batch_tokens
    )
    return 1 / max(by_flops, by_launches)


def training_seconds(recipe: Recipe, gpu: str, gpus: int, first_step: int = 0) -> float:
    """Estimated seconds from ``first_step`` to the end on ``gpus`` of that kind, start and evaluations included."""
    train = recipe.train
    steps = max(0, train.max_steps - first_step)
    if steps == 0:
        return OVERHEAD_SECONDS
    evaluations = -(-train.max_steps // train.eval_every) - first_step // train.eval_every
    tokens = tokens_before(train, train.max_steps) - tokens_before(train, first_step)
    tokens += int(evaluations * (train.eval_tokens or EVAL_TOKENS) * FORWARD_SHARE)
    return tokens / tokens_per_second(recipe, gpu, gpus) + OVERHEAD_SECONDS


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
        return (
            f"{text}: tight; where it runs out of memory, the trainer halves micro_batch by itself"
        )
    return text


def training_machine(recipe: Recipe | None, gpus: GpuRequest, cores: float = 4.0) -> RentedMachine:
    """Return the machine that ``gpus`` are rented with; ``cores`` are for each GPU, up to 4 GPUs.

    A container may use more cores and memory than it asked for, and then pays for them.
    """
    memory_gib = 8.0 * gpus.count
    if recipe is not None:  # weights and optimizer are copied to the CPU for a checkpoint
        state = network_size(recipe.model, recipe.data.tokenizer).parameters * 12
        memory_gib = max(memory_gib, 4.0 + 2.0 * state / 2**30)
    return RentedMachine(gpus, cores * min(gpus.count, 4), float(math.ceil(memory_gib)))


def refuse_too_large(recipe: Recipe, gpus: GpuRequest, nodes: int) -> None:
    """Raise RunnerError, exit code 2, for a GPU on which a single sequence does not fit.

    The trainer halves micro_batch when memory is short; one sequence can't be halved.
    """
    alone = recipe.train.model_copy(update={"micro_batch": 1})
    processes = gpus.count * nodes
    for name in gpus.names:
        if fit(recipe, name, processes).largest is None:
            found = fit(recipe.model_copy(update={"train": alone}), name, processes)
            raise usage(
                f"not even one sequence fits on a {name}: it takes about {found.needed_gb:.2g} of {found.there_gb:g} GB; "
                "take a larger GPU, activation_checkpointing=true or a smaller network"
            )


def warnings(
    seconds: dict[str, float],
    hourly: dict[str, float],
    max_cost: float | None,
    timeout_s: float,
    spent: float,
    used: float,
) -> str:
    """A line for the cap and one for the time where they end before the training does, on the GPU that fares best;
    '' where both suffice. ``seconds`` are what is left to do by GPU, ``spent`` dollars and ``used`` seconds so far."""
    lines = []
    price = min(span / 3600 * hourly[name] for name, span in seconds.items())
    if max_cost is not None and (left := max_cost - spent) < price:
        lines.append(
            f"the cap pays for {_percent(left / price)} of it, {dollars(left)} of about {dollars(price)}; "
            "give it more with --max-cost, or train fewer steps"
        )
    span = min(seconds.values())
    if (rest := timeout_s - used) < span:
        lines.append(
            f"its time ends after {_percent(rest / span)} of it, {rough_duration(rest)} of about {rough_duration(span)}; "
            "give it more with --timeout, or train fewer steps"
        )
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "nearly all"
