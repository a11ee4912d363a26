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

from runner.command_line import completion
from runner.command_line.arguments import JSON
from runner.terminal import Environment

if TYPE_CHECKING:
    from runner.cloud.prices import Prices


@click.command(help=__doc__)
@click.argument("words", nargs=-1, metavar="[RECIPE] [key=value ...]", shell_complete=completion.recipes)
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
    env: Environment, words: tuple[str, ...], gpu: str | None, region: str | None, live: bool, as_json: bool
) -> int:
    from job.exit_status import ExitStatus
    from job.recipe import load
    from runner.checkout import find_checkout, recipes
    from runner.cloud.compare import ALL, compare
    from runner.cloud.compare_table import facts, show
    from runner.cloud.gpus import Gpus, parse_gpus
    from runner.cloud.price_file import current_prices
    from runner.cloud.prices import BUILT_IN
    from runner.command_line.words import sort_words
    from runner.errors import usage
    from runner.requests.request import find_recipe

    checkout = find_checkout(env.cwd)
    known = recipes(checkout)
    sorted_words = sort_words(words, known)
    if sorted_words.job != "train":
        raise usage(
            f"a plan compares GPUs for training, and {sorted_words.job} is another job; leave it away"
        )
    recipe = load(find_recipe(sorted_words, known, checkout, env.cwd), sorted_words.overrides)
    gpus = [parse_gpus(word) for word in gpu.split(",")] if gpu else [Gpus((name,)) for name in ALL]
    prices = current_prices(checkout, env.environ, _ask(env) if live else BUILT_IN)
    rows = compare(recipe, gpus, prices, region)
    if as_json:
        env.json(facts(recipe, rows, prices))
    else:
        show(recipe, rows, prices, env)
    return ExitStatus.DONE


def _ask(env: Environment) -> Prices:
    """Raises RunnerError where Modal gives no rates."""
    from runner.cloud.account import is_set_up
    from runner.cloud.rates import live_prices
    from runner.cloud.servers import check_reachable
    from runner.errors import RunnerError

    if not is_set_up(env.environ):
        raise RunnerError("there is no Modal token here to ask for rates with; type: modal token new")
    check_reachable(env.environ)
    found = live_prices()
    if found is None:
        raise RunnerError(
            "Modal gave no rates; type it without --live for the table's, or: modal billing rates"
        )
    return found
