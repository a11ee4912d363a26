"""Argument types, and the options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from runner import completion
from runner.errors import usage
from runner.format import parse_dollars, parse_duration

if TYPE_CHECKING:
    from runner.pricing.gpus import GpuRequest

Decorator = Callable[[Any], Any]


class _Amount(click.ParamType[float]):
    """A number that is typed with a unit."""

    def __init__(self, name: str, parse: Callable[[str, str], float]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number in ``value``."""
        if isinstance(value, float):
            return value
        return self._parse(not_empty(value, param), flag(param))


DURATION = _Amount("duration", parse_duration)  # 90m, 12h or 3d, in seconds
DOLLARS = _Amount("dollars", parse_dollars)  # 25 or $25


class GpuSpec(click.ParamType["GpuRequest"]):
    """``H100``, ``H100:8``, or alternatives in order of preference: ``H100:8,A100-80GB:8``."""

    name = "gpu"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> GpuRequest:
        """Return the request that ``value`` describes."""
        from runner.pricing.gpus import parse_gpus

        return parse_gpus(not_empty(value, param)) if isinstance(value, str) else value


def flag(param: click.Parameter | None) -> str:
    """Return the long spelling of an option, for messages."""
    return max(param.opts, key=len) if param is not None else "the value"


def not_empty(value: str, param: click.Parameter | None) -> str:
    """Return ``value``. Raise RunnerError if it is empty, as from an unset shell variable."""
    if not value.strip():
        raise usage(f"{flag(param)} is empty; give it a value (is its variable set?) or remove it")
    return value


def refuse_empty(command: click.Command) -> click.Command:
    """Make every text option of ``command`` refuse an empty value."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.type is click.STRING:
            parameter.callback = _check_not_empty
    return command


def _check_not_empty(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, str):
            not_empty(each, parameter)
    return value


DRY_RUN = click.option("--dry-run", is_flag=True, help="Print the plan and exit.")

DETACH = click.option("--detach", is_flag=True, help="Start the job in the background and return.")

JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

YES = click.option("-y", "--yes", is_flag=True, help="Answer yes to every question.")

DEVICE = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "mps"]),
    help="Device to use; by default the fastest available.",
)

TIMEOUT = click.option(
    "--timeout",
    type=DURATION,
    metavar="TIME",
    help="Maximum time of the run over all attempts: 90m, 12h, 3d.",
)

MAX_COST = click.option(
    "--max-cost",
    type=DOLLARS,
    metavar="USD",
    help="Maximum cost over all attempts; the run then saves a checkpoint and exits with 104.",
)

REGION = click.option(
    "--region", metavar="R", help="Region: us, eu, us-east, ...; raises the price."
)

TARGET = click.option(
    "--target",
    metavar="TARGET",
    shell_complete=completion.targets,
    help="host, local or cloud.",
)

VOLUME = click.argument("volume", shell_complete=completion.volumes)

RUN = click.argument("run", required=False, metavar="[RUN]", shell_complete=completion.runs)


def transfer_options(function: Callable[..., int]) -> Callable[..., int]:
    """Add the options of both `push` and `pull`: everything, dry_run, as_json and yes."""
    everything = click.option(
        "--all",
        "everything",
        is_flag=True,
        help="checkpoints: every checkpoint and every file of a run.",
    )
    for option in (YES, JSON, DRY_RUN, everything):
        function = option(function)
    return function
