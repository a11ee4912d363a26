"""Estimates of a training run on rented GPUs: hours, memory fit, and whether its limits suffice.

    hours = steps * tokens per step * FLOPs per token / (GPUs * peak FLOP/s * MFU)

MFU, the share of the datasheet's peak that a trainer reaches, comes from a table: measurements of
others with the same parts (torch.compile, fused attention, bfloat16), else a cautious assumption.
`compare_gpus` makes the table of `runner estimate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from job.format import dollars, duration
from job.machine import datasheet_flops, should_compile
from job.memory import (
    chosen_micro_batch,
    flops_per_token,
    largest_micro_batch,
    micro_batch_size,
    network_size,
    training_memory,
)
from job.schedules import tokens_before
from runner.console import CliContext, new_table
from runner.errors import usage
from runner.planning.gpus import ASSUMED, BY_NAME, GpuRequest, Prices, RentedMachine, usd_per_hour

if TYPE_CHECKING:
    from job.recipe import Recipe

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
        """Return True if the recipe is expected to run unchanged."""
        return self.needed_gb <= self.available_gb

    @property
    def advice(self) -> str:
        """Return the change that makes it fit; '' if it fits."""
        if self.fits:
            return ""
        if self.largest_micro_batch is None:
            return f"a single sequence does not fit; {REMEDIES}"
        return (
            f"use micro_batch={self.largest_micro_batch} and "
            f"{self.largest_grad_accum_steps} gradient accumulation steps for the same batch "
            "(or micro_batch=auto), or a larger GPU"
        )


REMEDIES = "use a larger GPU, activation_checkpointing=true or a smaller network"


def uses_bf16(recipe: Recipe, gpu: str) -> bool:
    """Return True if the trainer's autocast uses bfloat16 on ``gpu``."""
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
        f"with micro_batch {fit.micro_batch}"
    )
    if fit.grad_accum_steps > 1:
        text += f", {fit.grad_accum_steps} gradient accumulation steps"
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
    """Raise RunnerError, exit status 2, for a GPU on which a single sequence does not fit.

    The trainer halves micro_batch when memory is short, but it can't halve one sequence.
    """
    single = recipe.train.model_copy(update={"micro_batch": 1})
    processes = gpus.count * nodes
    for name in gpus.names:
        if memory_fit(recipe, name, processes).largest_micro_batch is None:
            fit = memory_fit(recipe.model_copy(update={"train": single}), name, processes)
            raise usage(
                f"a single sequence does not fit on one {name}: it needs about {fit.needed_gb:.2g} "
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
    if max_cost is not None and (rest := max(0.0, max_cost - spent)) < price:
        lines.append(
            f"--max-cost pays for {_percent(rest / price)} of it, {dollars(rest)} of about "
            f"{dollars(price)}; raise --max-cost, or train fewer steps"
        )
    span = min(seconds.values())
    if (rest := max(0.0, timeout_s - used_s)) < span:
        lines.append(
            f"--timeout ends after {_percent(rest / span)} of it, {duration(rest)} of about "
            f"{duration(span)}; raise --timeout, or train fewer steps"
        )
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 0.995 else "nearly all"


@dataclass(frozen=True)
class Row:
    """The recipe on ``count`` GPUs of one type: seconds and US dollars of the whole run."""

    gpu: str
    count: int
    fit: MemoryFit
    tokens_per_second: float
    mfu: float
    mfu_source: str
    seconds: float
    usd_per_hour: float
    usd: float
    usd_per_billion_tokens: float | None  # None if nothing is trained
    cheapest: bool = False
    fastest: bool = False

    @property
    def name(self) -> str:
        """Return the value for ``--gpu``."""
        return str(GpuRequest((self.gpu,), self.count))

    @property
    def remark(self) -> str:
        """Return the text of the last column."""
        if not self.fit.fits:
            return f"does not fit: {self.fit.advice}"
        flags = (
            ("cheapest", self.cheapest),
            ("fastest", self.fastest),
            ("speed assumed", self.mfu_source == ASSUMED),
        )
        return ", ".join(word for word, applies in flags if applies)

    def to_json(self) -> dict[str, Any]:
        """Return the row for --json."""
        fit = {**asdict(self.fit), "fits": self.fit.fits, "advice": self.fit.advice}
        return {**asdict(self), "gpu": self.name, "fit": fit}


def compare_gpus(
    recipe: Recipe, gpus: Sequence[GpuRequest], prices: Prices, region: str | None = None
) -> list[Row]:
    """Return a row for each of ``gpus``: first those that fit, the cheapest first."""
    rows = [_row(recipe, one.names[0], one.count, prices, region) for one in gpus]
    fitting = [row for row in rows if row.fit.fits]
    cheapest = min(fitting, key=lambda row: row.usd, default=None)
    fastest = min(fitting, key=lambda row: row.seconds, default=None)
    marked = [replace(row, cheapest=row is cheapest, fastest=row is fastest) for row in rows]
    return sorted(marked, key=lambda row: (not row.fit.fits, row.usd))


def _row(recipe: Recipe, gpu: str, count: int, prices: Prices, region: str | None) -> Row:
    fit = memory_fit(recipe, gpu, count)
    if not fit.fits and fit.largest_micro_batch is not None:  # its time with a batch that fits
        train = recipe.train.model_copy(update={"micro_batch": fit.largest_micro_batch})
        recipe = recipe.model_copy(update={"train": train})
    machine = training_machine(recipe, GpuRequest((gpu,), count))
    hourly = usd_per_hour(machine, 1, region, prices)[gpu]
    seconds = training_seconds(recipe, gpu, count)
    usd = seconds / 3600 * hourly
    tokens = tokens_before(recipe.train, recipe.train.max_steps)
    return Row(
        gpu,
        count,
        fit,
        tokens_per_second(recipe, gpu, count),
        mfu(recipe, gpu),
        BY_NAME[gpu].mfu_source,
        seconds,
        hourly,
        usd,
        usd / tokens * 1e9 if tokens else None,
    )


def comparison_to_json(recipe: Recipe, rows: Sequence[Row], prices: Prices) -> dict[str, Any]:
    """Return the comparison for --json: seconds, US dollars, GB of 1e9 bytes."""
    return {
        "recipe": recipe.name,
        "parameters": network_size(recipe.model, recipe.data.tokenizer).parameters,
        "tokens": tokens_before(recipe.train, recipe.train.max_steps),
        "flops_per_token": flops_per_token(recipe),
        "prices": prices.source,
        "gpus": [row.to_json() for row in rows],
    }


def show_comparison(recipe: Recipe, rows: Sequence[Row], prices: Prices, cli: CliContext) -> None:
    """Print the table on stdout, and its basis on stderr."""
    numbers = ("tokens/s", "time", "$/hour", "dollars", "$/B tokens", "memory")
    table = new_table("gpu", *numbers, left_aligned=("gpu",))
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.tokens_per_second:,.0f}",
            duration(row.seconds),
            f"{row.usd_per_hour:.2f}",
            f"{row.usd:.2f}",
            "-" if row.usd_per_billion_tokens is None else f"{row.usd_per_billion_tokens:.2f}",
            f"{row.fit.needed_gb:.1f} of {row.fit.available_gb:g} GB",
            row.remark,
        )
    cli.print_table(table, data=True)
    size = network_size(recipe.model, recipe.data.tokenizer).parameters
    tokens = tokens_before(recipe.train, recipe.train.max_steps)
    cli.info(
        f"{recipe.name}: {size / 1e6:.1f}M parameters, {tokens / 1e9:.3g} B tokens; "
        f"{prices.source}. These are estimates: after 50 steps a run reports its measured time. "
        "Start one with `runner cloud --gpu NAME`"
    )
