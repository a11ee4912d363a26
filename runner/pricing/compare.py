"""The table of `runner estimate`: speed, time, cost and memory of a recipe on each GPU type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from job.format import duration
from job.memory import flops_per_token, network_size
from job.recipe import Recipe
from job.schedules import tokens_before
from runner.console import CliContext
from runner.pricing.estimate import (
    MemoryFit,
    memory_fit,
    mfu,
    tokens_per_second,
    training_machine,
    training_seconds,
)
from runner.pricing.gpus import ASSUMED, BY_NAME, GpuRequest
from runner.pricing.prices import Prices, usd_per_hour


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
