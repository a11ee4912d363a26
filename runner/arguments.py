"""The arguments that every launching command shares, defined once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

from runner import completion
from runner.terminal import Environment


@dataclass(frozen=True)
class CommandLine:
    """What was typed behind ``runner host``, ``runner local`` and their like, not yet checked."""

    words: tuple[str, ...] = ()
    name: str | None = None
    gpu: int | None = None
    device: str | None = None
    source: str | None = None
    into: str | None = None
    dry_run: bool = False
    detach: bool = False
    as_json: bool = False
    yes: bool = False


GPU = click.option(
    "--gpu",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of GPUs; above 1 it trains in N processes under torchrun.",
)
DEVICE = click.option(
    "--device", type=click.Choice(["cpu", "cuda", "mps"]), help="By default the best that is there."
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
DETACH = click.option("--detach", is_flag=True, help="Start it and return; it outlives this terminal.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print facts as JSON on stdout.")
YES = click.option("-y", "--yes", is_flag=True, help="Answer every question with yes.")


def launch_arguments(function: Callable[..., int], gpu: Callable[[Any], Any] = GPU) -> Callable[..., Any]:
    """Give a command the shared arguments; it is called as ``function(env, line, **own_options)``.

    ``gpu`` replaces the option --gpu for a target that names its GPUs; it then has another parameter's name.
    """

    @click.pass_obj
    @wraps(function)
    def command(env: Environment, /, **given: Any) -> int:
        fields = CommandLine.__dataclass_fields__.values()
        line = CommandLine(**{field.name: given.pop(field.name, field.default) for field in fields})
        return function(env, line, **given)

    options: list[Callable[[Any], Any]] = [
        click.argument(
            "words",
            nargs=-1,
            metavar="[JOB] [RECIPE] [key=value ...]",
            shell_complete=completion.words,
        ),
        click.option(
            "--name",
            metavar="RUN",
            help="Name of the run; by default the recipe's.",
            shell_complete=completion.runs,
        ),
        gpu,
        DEVICE,
        click.option("--source", metavar="S", help="prepare: the text, instead of the recipe's source."),
        click.option("--into", metavar="DIR", help="export: the folder to write."),
        DRY_RUN,
        DETACH,
        JSON,
        YES,
    ]
    decorated: Any = command
    for option in reversed(options):
        decorated = option(decorated)
    result: Callable[..., Any] = decorated
    return result
