"""Estimate the cost of training on Modal, and show what was spent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from runner import completion
from runner.cli_options import JSON, REGION, flag
from runner.console import CliContext
from runner.errors import RunnerError, usage
from runner.project import find_checkout

if TYPE_CHECKING:
    from runner.planning.gpus import Prices


@click.command()
@click.argument(
    "args", nargs=-1, metavar="[RECIPE] [key=value ...]", shell_complete=completion.recipes
)
@click.option(
    "--gpu",
    metavar="NAME[:N],...",
    help="Compare only these: H100,H100:8. By default one GPU of each type.",
    shell_complete=completion.gpus,
)
@REGION
@click.option("--live", is_flag=True, help="Ask Modal for the current prices of your account.")
@JSON
@click.pass_obj
def estimate_command(
    cli: CliContext,
    args: tuple[str, ...],
    gpu: str | None,
    region: str | None,
    live: bool,
    as_json: bool,
) -> None:
    """Compare the GPUs on Modal for a recipe: time, cost and memory.

    \b
      runner estimate gpt2_124m
      runner estimate gpt2_124m max_steps=5000 --gpu H100,H100:8,L40S
      runner estimate configs/mine.yaml micro_batch=auto --json

    The command starts nothing. Prices come from a built-in table, from your prices.yaml, or
    with --live from Modal; times from the recipe's FLOPs; memory from its shapes.
    `runner cloud --dry-run` shows the plan of one launch.
    """
    from runner.jobs import JOBS
    from runner.launch.parse import load_recipe
    from runner.planning.estimate import compare_gpus, comparison_to_json, show_comparison
    from runner.planning.gpus import (
        BUILT_IN_PRICES,
        GPU_TYPES,
        GpuRequest,
        current_prices,
        parse_gpus,
    )

    checkout = find_checkout(cli.cwd)
    args = tuple(arg for arg in args if arg != "train")
    if jobs := JOBS.keys() & {*args}:
        raise usage(f"`runner estimate` is for training only; remove {jobs.pop()}")
    recipe = load_recipe(args, checkout, cli.cwd)
    gpus = (
        [parse_gpus(word) for word in gpu.split(",")]
        if gpu
        else [GpuRequest((name,)) for name in GPU_TYPES]
    )
    prices = current_prices(checkout, cli.environ, _live_prices(cli) if live else BUILT_IN_PRICES)
    rows = compare_gpus(recipe, gpus, prices, region)
    if as_json:
        cli.json(comparison_to_json(recipe, rows, prices))
    else:
        show_comparison(recipe, rows, prices, cli)


def _live_prices(cli: CliContext) -> Prices:
    from runner.planning.gpus import live_prices
    from runner.targets.modal.client import NEW_TOKEN, check_reachable, is_configured

    if not is_configured(cli.environ):
        raise RunnerError(f"--live needs a Modal token; run `{NEW_TOKEN}`")
    check_reachable(cli.environ)
    prices = live_prices()
    if prices is None:
        raise RunnerError(
            "Modal returned no prices; omit --live to use the built-in table, or check "
            "`modal billing rates`"
        )
    return prices


class _Day(click.DateTime):
    """A day or a month."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the date in ``value``."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            raise usage(
                f"{flag(param)} {value}: expected a day such as 2026-09-01 or a month such as "
                "2026-09"
            ) from None


@click.command()
@click.option(
    "--since",
    type=_Day(["%Y-%m-%d", "%Y-%m"]),
    metavar="DAY",
    help="First day (2026-09-01) or month (2026-09), in UTC. [default: this month]",
)
@JSON
@click.pass_obj
def spend_command(cli: CliContext, since: datetime | None, as_json: bool) -> None:
    """Show the cost of the runs on Modal: by the runner's records and by Modal's bill.

    \b
      runner spend                     this month
      runner spend --since 2026-09-01

    Modal bills whole hours, some time after they end. One row sums the apps that are not runs.
    GPT_RUNNER_MONTHLY_CAP=200 in .env limits the cost of all runs in a month.
    """
    from job.format import dollars
    from runner.target import all_targets
    from runner.targets.modal.runs import start_of_month

    start = start_of_month() if since is None else since.replace(tzinfo=UTC)
    billing = [target for target in all_targets(cli, find_checkout(cli.cwd)) if target.bills]
    costs = [cost for target in billing for cost in target.costs(start.timestamp())]
    if as_json:
        cli.json(costs)
        return
    total = ("total", sum(cost.recorded for cost in costs), sum(cost.billed for cost in costs))
    lines = [(cost.run or "(other apps)", cost.recorded, cost.billed) for cost in costs]
    width = max(len(name) for name, _, _ in [*lines, total])
    cli.write(f"{'since ' + start.strftime('%Y-%m-%d'):<{width}}  {'recorded':>9}  {'billed':>9}")
    for name, recorded, billed in [*lines, total]:
        cli.write(f"{name:<{width}}  {dollars(recorded):>9}  {dollars(billed):>9}")
