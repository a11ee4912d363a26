"""Estimates of a training run on rented GPUs: hours, memory fit, and whether its limits suffice.

    hours = steps * tokens per step * FLOPs per token / (GPUs * peak FLOP/s * MFU)

MFU, the share of the datasheet's peak that a trainer reaches, comes from a table: measurements of
others with the same parts (torch.compile, fused attention, bfloat16), else a cautious assumption.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from job.format import duration
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
from runner.format import dollars
from runner.pricing.gpus import BY_NAME, GpuRequest
from runner.pricing.prices import RentedMachine

REFERENCE_WIDTH = 768

# Narrow networks reach less: nanoGPT's shakespeare_char, 384 wide, takes 3 minutes on an A100, a
# tenth of the peak and a third of 124M's share: the width to the power of 1.6. Wide ones reach
# more: torchtitan's 8B, 4,096 wide, 0.41 on an H100 (6,667 tokens/s compiled), a power of 0.13.
NARROW_POWER, WIDE_POWER = 1.6, 0.13
MAX_MFU = 0.5

# Launching the kernels of one pass takes this long for each block however fast the GPU is. It keeps
# the estimate of a toy network from being absurd.
SECONDS_PER_BLOCK = 0.0008

STARTUP_S = 120.0  # starting the container, importing torch, compiling

FORWARD_SHARE = 1 / 3  # an evaluation is a forward pass: a third of the FLOPs of training
CHECKPOINTING_FACTOR = 1 + FORWARD_SHARE  # activation checkpointing repeats the forward pass

# Tokens of an evaluation over the whole validation set, whose size a plan does not know.
EVAL_TOKENS = 1_000_000


def mfu(recipe: Recipe, gpu: str) -> float:
    """Return the share of the peak that this network is expected to reach on ``gpu``."""
    ratio = recipe.model.n_embd / REFERENCE_WIDTH
    return min(MAX_MFU, BY_NAME[gpu].mfu * ratio ** (NARROW_POWER if ratio < 1 else WIDE_POWER))


def tokens_per_second(recipe: Recipe, gpu: str, gpus: int) -> float:
    """Return the expected training speed of all ``gpus`` together."""
    peak = datasheet_flops(gpu)
    assert peak is not None  # known for every rented GPU
    if not uses_bf16(recipe, gpu):
        peak *= BY_NAME[gpu].float32_share
    factor = CHECKPOINTING_FACTOR if recipe.train.activation_checkpointing else 1
    by_flops = flops_per_token(recipe) * factor / (gpus * peak * mfu(recipe, gpu))
    passes = memory_fit(recipe, gpu, gpus).grad_accum_steps
    by_launches = (
        passes * recipe.model.n_layer * SECONDS_PER_BLOCK / recipe.train.global_batch_tokens
    )
    return 1 / max(by_flops, by_launches)


def training_seconds(recipe: Recipe, gpu: str, gpus: int, first_step: int = 0) -> float:
    """Estimate the seconds from ``first_step`` to the end, start-up and evaluations included."""
    train = recipe.train
    if train.max_steps <= first_step:
        return STARTUP_S
    evaluations = -(-train.max_steps // train.eval_every) - first_step // train.eval_every
    tokens = tokens_before(train, train.max_steps) - tokens_before(train, first_step)
    tokens += int(evaluations * (train.eval_tokens or EVAL_TOKENS) * FORWARD_SHARE)
    return tokens / tokens_per_second(recipe, gpu, gpus) + STARTUP_S


@dataclass(frozen=True)
class MemoryFit:
    """A recipe in the memory of one GPU type. GB are 1e9 bytes."""

    gpu: str
    needed_gb: float
    available_gb: float
    micro_batch: int  # of the recipe, or chosen for micro_batch=auto
    grad_accum_steps: int
    largest_micro_batch: int | None  # that fits; None if a single sequence does not fit
    largest_grad_accum_steps: int | None  # with that micro-batch

    @property
    def fits(self) -> bool:
        """Return whether the recipe is expected to run unchanged."""
        return self.needed_gb <= self.available_gb

    @property
    def advice(self) -> str:
        """Return the change that makes it fit; '' if it fits."""
        if self.fits:
            return ""
        if self.largest_micro_batch is None:
            return f"a single sequence does not fit; {REMEDIES}"
        return (
            f"use micro_batch={self.largest_micro_batch}, accumulated "
            f"{self.largest_grad_accum_steps} times for the same batch (or micro_batch=auto), "
            "or a larger GPU"
        )


REMEDIES = "use a larger GPU, activation_checkpointing=true or a smaller network"


def uses_bf16(recipe: Recipe, gpu: str) -> bool:
    """Return whether the trainer's autocast uses bfloat16 on ``gpu``."""
    return recipe.train.dtype == "bfloat16" or (recipe.train.dtype == "auto" and BY_NAME[gpu].bf16)


def memory_fit(recipe: Recipe, gpu: str, processes: int) -> MemoryFit:
    """Estimate how ``recipe`` fits if ``processes`` GPUs of that type share a step."""
    available_gb, bf16 = BY_NAME[gpu].memory_gb, uses_bf16(recipe, gpu)
    available = available_gb * 1e9
    compiled, _ = should_compile(recipe, "cuda")
    share = max(1, recipe.sequences_per_step // processes)
    size = micro_batch_size(share, chosen_micro_batch(recipe, available, processes, bf16, compiled))
    needed = training_memory(recipe, size, processes, bf16, compiled).on_gpu
    largest = largest_micro_batch(recipe, available, processes, bf16, compiled)
    return MemoryFit(
        gpu,
        needed / 1e9,
        available_gb,
        size,
        share // size,
        largest,
        share // largest if largest is not None else None,
    )


def smallest_gpu(names: tuple[str, ...]) -> str:
    """Return the type with the least memory: a recipe that fits it fits all."""
    return min(names, key=lambda name: BY_NAME[name].memory_gb)


def describe_fit(recipe: Recipe, names: tuple[str, ...], processes: int) -> str:
    """Return the plan's row ``memory``, with advice if the recipe does not fit."""
    fit = memory_fit(recipe, smallest_gpu(names), processes)
    text = (
        f"about {fit.needed_gb:.2g} of {fit.available_gb:g} GB on {fit.gpu} (estimated) "
        f"with micro_batch {fit.micro_batch}, accumulated {fit.grad_accum_steps} times"
    )
    if not fit.fits:
        return f"{text}: it will not fit; {fit.advice}"
    if fit.needed_gb > 0.9 * fit.available_gb:
        return f"{text}: tight; if memory runs out, the trainer halves micro_batch"
    return text


def training_machine(recipe: Recipe | None, gpus: GpuRequest, cores: float = 4.0) -> RentedMachine:
    """Return the machine to rent with ``gpus``; ``cores`` are for each GPU, up to 4 GPUs.

    A container may use more cores and memory than it asked for, and then pays for them.
    """
    memory_gib = 8.0 * gpus.count
    if recipe is not None:  # weights and optimizer are copied to the CPU for a checkpoint
        state = network_size(recipe.model, recipe.data.tokenizer).parameters * 12
        memory_gib = max(memory_gib, 4.0 + 2.0 * state / 2**30)
    return RentedMachine(gpus, cores * min(gpus.count, 4), float(math.ceil(memory_gib)))


def refuse_too_large(recipe: Recipe, gpus: GpuRequest, nodes: int) -> None:
    """Raise RunnerError, exit code 2, for a GPU on which a single sequence does not fit.

    The trainer halves micro_batch when memory is short, but it can't halve one sequence.
    """
    single = recipe.train.model_copy(update={"micro_batch": 1})
    processes = gpus.count * nodes
    for name in gpus.names:
        if memory_fit(recipe, name, processes).largest_micro_batch is None:
            fit = memory_fit(recipe.model_copy(update={"train": single}), name, processes)
            raise usage(
                f"a single sequence does not fit on a {name}: it needs about {fit.needed_gb:.2g} "
                f"of {fit.available_gb:g} GB; {REMEDIES}"
            )


def limit_warnings(
    seconds: dict[str, float],
    hourly: dict[str, float],
    max_cost: float | None,
    timeout_s: float,
    spent: float,
    used_s: float,
) -> str:
    """Return a line for each limit that ends before the training does; '' if both suffice.

    ``seconds`` are the estimates by GPU type, of which the best counts; ``spent`` dollars and
    ``used_s`` seconds belong to earlier attempts.
    """
    lines = []
    price = min(span / 3600 * hourly[name] for name, span in seconds.items())
    if max_cost is not None and (left := max_cost - spent) < price:
        lines.append(
            f"--max-cost pays for {_percent(left / price)} of it, {dollars(left)} of about "
            f"{dollars(price)}; raise --max-cost, or train fewer steps"
        )
    span = min(seconds.values())
    if (left := timeout_s - used_s) < span:
        lines.append(
            f"--timeout ends after {_percent(left / span)} of it, {duration(left)} of about "
            f"{duration(span)}; raise --timeout, or train fewer steps"
        )
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "nearly all"
