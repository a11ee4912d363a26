"""One recipe on each kind of GPU: how fast, how long, how dear, and whether it fits. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from job.memory import flops_per_token, network_size
from job.recipe import Recipe
from job.schedules import tokens_before
from runner.console import CliContext
from runner.format import rough_duration
from runner.pricing.estimate import (
    Fit,
    fit,
    mfu,
    tokens_per_second,
    training_machine,
    training_seconds,
)
from runner.pricing.gpus import ASSUMED, BY_NAME, GPU_TYPES, GpuRequest
from runner.pricing.prices import Prices, per_hour

ALL = tuple(GPU_TYPES)


@dataclass(frozen=True)
class Row:
    """The recipe on ``count`` GPUs of one kind. Seconds of the whole run, US dollars, GB of 1e9 bytes."""

    gpu: str
    count: int
    fit: Fit
    tokens_per_second: float
    mfu: float
    mfu_source: str
    seconds: float
    usd_per_hour: float
    usd: float
    usd_per_billion_tokens: float | None  # None where nothing is trained
    cheapest: bool = False
    fastest: bool = False

    @property
    def name(self) -> str:
        """As Modal takes it."""
        return f"{self.gpu}:{self.count}" if self.count > 1 else self.gpu


def compare_gpus(
    recipe: Recipe, gpus: Sequence[GpuRequest], prices: Prices, region: str | None = None
) -> list[Row]:
    """A row for each of ``gpus``: those that fit first, the cheapest first; then those that do not."""
    rows = [_row(recipe, one.names[0], one.count, prices, region) for one in gpus]
    fitting = [row for row in rows if row.fit.fits]
    cheapest = min(fitting, key=lambda row: row.usd, default=None)
    fastest = min(fitting, key=lambda row: row.seconds, default=None)
    marked = [replace(row, cheapest=row is cheapest, fastest=row is fastest) for row in rows]
    return sorted(marked, key=lambda row: (not row.fit.fits, row.usd))


def _row(recipe: Recipe, gpu: str, count: int, prices: Prices, region: str | None) -> Row:
    found = fit(recipe, gpu, count)
    if (
        not found.fits and found.largest is not None
    ):  # its time is that of the micro-batch that would fit
        train = recipe.train.model_copy(update={"micro_batch": found.largest})
        recipe = recipe.model_copy(update={"train": train})
    machine = training_machine(recipe, GpuRequest((gpu,), count))
    hourly = per_hour(machine, 1, region, prices)[gpu]
    seconds = training_seconds(recipe, gpu, count)
    usd = seconds / 3600 * hourly
    tokens = tokens_before(recipe.train, recipe.train.max_steps)
    return Row(
        gpu,
        count,
        found,
        tokens_per_second(recipe, gpu, count),
        mfu(recipe, gpu),
        BY_NAME[gpu].mfu_source,
        seconds,
        hourly,
        usd,
        usd / tokens * 1e9 if tokens else None,
    )


def to_json(recipe: Recipe, rows: Sequence[Row], prices: Prices) -> dict[str, Any]:
    """For --json: seconds, US dollars, GB of 1e9 bytes."""
    return {
        "recipe": recipe.name,
        "parameters": network_size(recipe.model, recipe.data.tokenizer).parameters,
        "tokens": tokens_before(recipe.train, recipe.train.max_steps),
        "flops_per_token": flops_per_token(recipe),
        "prices": prices.source,
        "gpus": [_facts(row) for row in rows],
    }


def _facts(row: Row) -> dict[str, Any]:
    return {
        **asdict(row),
        "gpu": row.name,
        "fit": {**asdict(row.fit), "fits": row.fit.fits, "advice": row.fit.advice},
    }


def show_comparison(recipe: Recipe, rows: Sequence[Row], prices: Prices, cli: CliContext) -> None:
    """The table on stdout: it is data. What it is made from on stderr."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("gpu", no_wrap=True)
    for title in ("tokens/s", "time", "$/hour", "dollars", "$/B tokens", "memory"):
        table.add_column(title, no_wrap=True, justify="right")
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.tokens_per_second:,.0f}",
            rough_duration(row.seconds),
            f"{row.usd_per_hour:.2f}",
            f"{row.usd:.2f}",
            "-" if row.usd_per_billion_tokens is None else f"{row.usd_per_billion_tokens:.2f}",
            f"{row.fit.needed_gb:.1f} of {row.fit.there_gb:g} GB",
            remark(row),
        )
    cli.print_table(table, data=True)
    size = network_size(recipe.model, recipe.data.tokenizer).parameters
    tokens = tokens_before(recipe.train, recipe.train.max_steps)
    cli.info(
        f"{recipe.name}: {size / 1e6:.1f}M parameters, {tokens / 1e9:.3g} B tokens; {prices.source}. Estimates: after "
        "50 steps a run knows better. `runner cloud --gpu NAME` launches it"
    )


def remark(row: Row) -> str:
    """What a person should know of the row."""
    if not row.fit.fits:
        return f"does not fit: {row.fit.advice}"
    words = [word for word, said in (("cheapest", row.cheapest), ("fastest", row.fastest)) if said]
    if row.mfu_source == ASSUMED:
        words.append("speed assumed")
    return ", ".join(words)
