"""One recipe on each kind of GPU: how fast, how long, how dear, and whether it fits. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from job.batch_schedule import tokens_before
from job.recipe import Recipe
from runner.cloud.estimate import mfu, tokens_per_second, training_seconds
from runner.cloud.fit import Fit, fit
from runner.cloud.gpu_kinds import BY_NAME, KINDS
from runner.cloud.gpus import Gpus
from runner.cloud.options import training_machine
from runner.cloud.prices import Prices, per_hour

ALL = tuple(KINDS)


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


def compare(recipe: Recipe, gpus: Sequence[Gpus], prices: Prices, region: str | None = None) -> list[Row]:
    """A row for each of ``gpus``: those that fit first, the cheapest first; then those that do not."""
    rows = [_row(recipe, one.names[0], one.count, prices, region) for one in gpus]
    fitting = [row for row in rows if row.fit.fits]
    cheapest = min(fitting, key=lambda row: row.usd, default=None)
    fastest = min(fitting, key=lambda row: row.seconds, default=None)
    marked = [replace(row, cheapest=row is cheapest, fastest=row is fastest) for row in rows]
    return sorted(marked, key=lambda row: (not row.fit.fits, row.usd))


def _row(recipe: Recipe, gpu: str, count: int, prices: Prices, region: str | None) -> Row:
    found = fit(recipe, gpu, count)
    if not found.fits and found.largest is not None:  # its time is that of the micro-batch that would fit
        train = recipe.train.model_copy(update={"micro_batch": found.largest})
        recipe = recipe.model_copy(update={"train": train})
    machine = training_machine(recipe, Gpus((gpu,), count))
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
