"""Compare the GPUs of the cloud for a recipe: time, dollars, memory.

\b
  runner plan gpt2_124m
  runner plan gpt2_124m max_steps=5000 --gpu H100,H100:8,L40S
  runner plan configs/mine.yaml micro_batch=auto --json

It starts nothing, and without --live asks nobody: prices are a table (your own
prices.yaml replaces lines of it), times come from the recipe's FLOPs, memory is
counted from its shapes. `runner cloud --dry-run` plans one launch in full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from runner import completion
from runner.cli_options import JSON
from runner.console import CliContext

if TYPE_CHECKING:
    from runner.pricing.prices import Prices


@click.command(help=__doc__)
@click.argument(
    "words", nargs=-1, metavar="[RECIPE] [key=value ...]", shell_complete=completion.recipes
)
@click.option(
    "--gpu",
    metavar="NAME[:N],...",
    help="These alone: H100,H100:8; by default all, one of each.",
    shell_complete=completion.gpus,
)
@click.option("--region", metavar="R", help="Where it may run: us, eu, us-east ...; costs more.")
@click.option("--live", is_flag=True, help="Ask Modal first what your account pays now.")
@JSON
@click.pass_obj
def command(
    cli: CliContext,
    words: tuple[str, ...],
    gpu: str | None,
    region: str | None,
    live: bool,
    as_json: bool,
) -> int:
    from job.exit_status import ExitStatus
    from job.recipe import load
    from runner.errors import usage
    from runner.launch.parse import classify_args, find_recipe
    from runner.pricing.compare import compare_gpus, comparison_to_json, show_comparison
    from runner.pricing.gpus import GPU_TYPES, GpuRequest, parse_gpus
    from runner.pricing.prices import BUILT_IN, current_prices
    from runner.project import find_checkout, recipes

    checkout = find_checkout(cli.cwd)
    known = recipes(checkout)
    sorted_words = classify_args(words, known)
    if sorted_words.job != "train":
        raise usage(
            f"a plan compares GPUs for training, and {sorted_words.job} is another job; leave it away"
        )
    recipe = load(find_recipe(sorted_words, known, checkout, cli.cwd), sorted_words.overrides)
    gpus = (
        [parse_gpus(word) for word in gpu.split(",")]
        if gpu
        else [GpuRequest((name,)) for name in GPU_TYPES]
    )
    prices = current_prices(checkout, cli.environ, _ask(cli) if live else BUILT_IN)
    rows = compare_gpus(recipe, gpus, prices, region)
    if as_json:
        cli.json(comparison_to_json(recipe, rows, prices))
    else:
        show_comparison(recipe, rows, prices, cli)
    return ExitStatus.DONE


def _ask(cli: CliContext) -> Prices:
    """Raises RunnerError where Modal gives no rates."""
    from runner.errors import RunnerError
    from runner.pricing.prices import live_prices
    from runner.targets.modal.account import is_set_up
    from runner.targets.modal.client import check_reachable

    if not is_set_up(cli.environ):
        raise RunnerError(
            "there is no Modal token here to ask for rates with; type: modal token new"
        )
    check_reachable(cli.environ)
    found = live_prices()
    if found is None:
        raise RunnerError(
            "Modal gave no rates; type it without --live for the table's, or: modal billing rates"
        )
    return found
