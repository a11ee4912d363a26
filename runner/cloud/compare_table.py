"""How the comparison of GPUs looks: a table for a person, facts for a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from job.batch_schedule import tokens_before
from job.network_size import flops_per_token, network_size
from job.recipe import Recipe
from runner.cloud.compare import Row
from runner.cloud.durations import in_words
from runner.cloud.gpu_kinds import ASSUMED
from runner.cloud.prices import Prices
from runner.terminal import Environment


def facts(recipe: Recipe, rows: Sequence[Row], prices: Prices) -> dict[str, Any]:
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


def show(recipe: Recipe, rows: Sequence[Row], prices: Prices, env: Environment) -> None:
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
            in_words(row.seconds),
            f"{row.usd_per_hour:.2f}",
            f"{row.usd:.2f}",
            "-" if row.usd_per_billion_tokens is None else f"{row.usd_per_billion_tokens:.2f}",
            f"{row.fit.needed_gb:.1f} of {row.fit.there_gb:g} GB",
            remark(row),
        )
    env.print_table(table, data=True)
    size = network_size(recipe.model, recipe.data.tokenizer).parameters
    tokens = tokens_before(recipe.train, recipe.train.max_steps)
    env.say(
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
