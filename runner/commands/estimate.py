"""Compare the GPUs on Modal for a recipe: time, cost and memory.

\b
  runner estimate gpt2_124m
  runner estimate gpt2_124m max_steps=5000 --gpu H100,H100:8,L40S
  runner estimate configs/mine.yaml micro_batch=auto --json

The command starts nothing. Prices come from a built-in table, from your prices.yaml, or
with --live from Modal; times from the recipe's FLOPs; memory from its shapes.
`runner cloud --dry-run` shows the plan of one launch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from runner import completion
from runner.cli_options import JSON, REGION
from runner.console import CliContext

if TYPE_CHECKING:
    from runner.pricing.gpus import Prices


@click.command(help=__doc__)
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
def command(
    cli: CliContext,
    args: tuple[str, ...],
    gpu: str | None,
    region: str | None,
    live: bool,
    as_json: bool,
) -> int:
    from job.exit_status import ExitStatus
    from runner.errors import usage
    from runner.jobs import JOBS
    from runner.launch.parse import load_recipe
    from runner.pricing.estimate import compare_gpus, comparison_to_json, show_comparison
    from runner.pricing.gpus import (
        BUILT_IN_PRICES,
        GPU_TYPES,
        GpuRequest,
        current_prices,
        parse_gpus,
    )
    from runner.project import find_checkout

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
    return ExitStatus.DONE


def _live_prices(cli: CliContext) -> Prices:
    from runner.errors import RunnerError
    from runner.pricing.gpus import live_prices
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
