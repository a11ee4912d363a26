"""Argument types, and the options that several commands share."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from typing import Any

import click

from job.format import either, parse_dollars, parse_duration
from job.gpu_queue import GpuAccess
from job.notify import VARIABLE, is_valid_url
from job.trackers import DEFAULT_PROJECT, TRACKERS
from runner import completion
from runner.errors import RunnerError, did_you_mean, usage

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
        return self._parse(not_empty(value, flag(param)), flag(param))


class Number(click.ParamType[float]):
    """A number of at least ``low`` and at most ``high``; ``noun`` describes it in messages.

    Unlike click's types with a range, it shows no ``[1<=x<=32]`` in the help.
    """

    name = "number"
    _read: Callable[[str], float] = float

    def __init__(self, low: float, high: float = math.inf, noun: str = "a number") -> None:
        self.low, self.high = low, high
        to = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
        self.expected = f"{noun} {to}"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number in ``value``."""
        try:
            number = self._read(not_empty(value, flag(param))) if isinstance(value, str) else value
        except ValueError:
            number = math.nan
        if not self.low <= number <= self.high or number == math.inf:
            raise self.error(value, flag(param))
        return number

    def error(self, value: str, option: str) -> RunnerError:
        """Return the error for a ``value`` that is not such a number."""
        return usage(f"{option} {value}: expected {self.expected}")


class Integer(Number):
    """An integer of at least ``low`` and at most ``high``."""

    name = "integer"
    _read = int

    def __init__(self, low: int, high: float = math.inf, noun: str = "an integer") -> None:
        super().__init__(low, high, noun)


class GpuCount(Integer):
    """A number of GPUs of this machine, for which users also type the type of a GPU."""

    def error(self, value: str, option: str) -> RunnerError:
        """Return the error, which names the command for a GPU type."""
        from runner.planning.gpus import BY_NAME

        if value.partition(":")[0].partition(",")[0].upper() not in BY_NAME:
            return super().error(value, option)
        return usage(
            f"{option} {value}: expected a number of GPUs; GPU types are for Modal: "
            f"`runner cloud {option} {value}`"
        )


class Choice(click.Choice[str]):
    """One of several values; a mistake is one line with a suggestion or all of them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return ``value`` if it is one of them."""
        if value in self.choices:
            return str(value)
        if isinstance(param, click.Option) or param is None or ctx is None:
            raise usage(f"{flag(param)} {value}: expected {either(self.choices)}")
        message = f"unknown {param.name} '{value}'"
        if len(self.choices) == 1:
            only = self.choices[0]
            raise usage(f"{message}; expected {only}, as in `{ctx.command_path} {only} ...`")
        hint = did_you_mean(value, self.choices)
        raise usage(f"{message}{hint or f'; expected {either(self.choices)}'}")


DURATION = _Amount("duration", parse_duration)  # 90m, 12h or 3d, in seconds
DOLLARS = _Amount("dollars", parse_dollars)  # 25 or $25


def parse_gpu(value: str) -> str:
    """Return ``H100:8``, or alternatives in order of preference, if `parse_gpus` accepts them."""
    from runner.planning.gpus import parse_gpus

    return str(parse_gpus(not_empty(value, "--gpu")))


def parse_tag(value: str) -> str:
    """Return a run's tag, which tables show on one line."""
    if not not_empty(value, "--tag").isprintable():
        raise usage(f"--tag {value!r}: a tag is one line of printable characters")
    return value


def parse_tracker(value: str) -> tuple[str, str]:
    """Return the name and the project in ``wandb`` or ``wandb=PROJECT``."""
    name, equals, project = not_empty(value, "--tracker").partition("=")
    if name not in TRACKERS or (equals and not project):
        raise usage(f"--tracker {value}: expected {', '.join(TRACKERS)}, or NAME=PROJECT")
    return name, project or DEFAULT_PROJECT


def parse_notify_url(value: str) -> str:
    """Return the URL to send messages to. It is a secret: no message repeats it."""
    if not is_valid_url(value):
        raise usage("--notify: expected an http:// or https:// URL in ASCII")
    return value


def flag(param: click.Parameter | None) -> str:
    """Return the long spelling of an option, for messages."""
    return max(param.opts, key=len) if param is not None else "the value"


def not_empty(value: str, option: str) -> str:
    """Return ``value``. Raise RunnerError if it is empty, as from an unset shell variable."""
    if not value.strip():
        raise usage(f"{option} is empty; give it a value (is its variable set?) or remove it")
    return value


def refuse_empty(command: click.Command) -> click.Command:
    """Make every text option of ``command``, and of its jobs, refuse an empty value."""
    for job in command.commands.values() if isinstance(command, click.Group) else ():
        refuse_empty(job)
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.type is click.STRING:
            parameter.callback = _check_not_empty
    return command


def _check_not_empty(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, str):
            not_empty(item, flag(parameter))
    return value


DRY_RUN = click.option("--dry-run", is_flag=True, help="Print the plan and exit.")

DETACH = click.option("--detach", is_flag=True, help="Start the job in the background and return.")

TAG = click.option(
    "--tag",
    "tags",
    type=parse_tag,
    multiple=True,
    metavar="NAME",
    help="Tag of the run, for `runner runs --tag NAME`. Repeatable.",
)

QUEUE = click.option(
    "--queue",
    "access",
    flag_value=GpuAccess.QUEUE,
    type=click.UNPROCESSED,
    help="Wait for the GPUs that other runs use; `runner queue` shows the order.",
)

SHARE = click.option(
    "--share",
    "access",
    flag_value=GpuAccess.SHARE,
    type=click.UNPROCESSED,
    help="Use the GPUs at the same time as other runs.",
)

JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

YES = click.option("-y", "--yes", is_flag=True, help="Answer yes to every question.")

DEVICE = click.option(
    "--device",
    type=Choice(["cpu", "cuda", "mps"]),
    help="Device to use; by default the fastest available.",
)


def _set_notify_url(ctx: click.Context, parameter: click.Parameter, url: str | None) -> None:
    """Put the URL into the command's environment, where .env or the shell may have it too."""
    if url is not None and ctx.obj is not None:
        ctx.obj.environ = {**ctx.obj.environ, VARIABLE: url}
        ctx.obj.line = ctx.obj.line.replace(shlex.quote(url), "URL").replace(url, "URL")


NOTIFY = click.option(
    "--notify",
    type=parse_notify_url,
    metavar="URL",
    expose_value=False,
    callback=_set_notify_url,
    help="Send a message at the end: to Slack, Discord, ntfy or any webhook.",
)

TRACKER = click.option(
    "--tracker",
    "trackers",
    type=parse_tracker,
    multiple=True,
    metavar="NAME[=PROJECT]",
    help="Also log to wandb, mlflow or trackio. Repeatable.",
)

TIMEOUT = click.option(
    "--timeout",
    type=DURATION,
    metavar="TIME",
    help="Maximum time of each run over all its attempts: 90m, 12h, 3d.",
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

ENV = click.option(
    "--env",
    "variables",
    multiple=True,
    metavar="K[=V]",
    help="Set a variable of the job; K alone forwards K from the environment or .env.",
)

SECRET = click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="NAME",
    help="Pass a secret stored on Modal. Repeatable.",
)

FOLDER = click.option(
    "--dir",
    "folder",
    metavar="DIR",
    help="Folder to run in; it is uploaded to a remote target.",
    shell_complete=completion.folders,
)
SETUP = click.option(
    "--setup",
    multiple=True,
    metavar="LINE",
    help="Shell line to add to the image, such as `pip install ...`; "
    "`none` ignores requirements.txt. Repeatable.",
)
PERSIST = click.option(
    "--persist",
    multiple=True,
    metavar="PATH=VOLUME",
    help="Keep PATH of the folder on a volume: out=checkpoints. Repeatable.",
)


def target_option(help_text: str, default: str | None = None) -> Decorator:
    """Return ``--target``."""
    return click.option(
        "--target",
        metavar="TARGET",
        default=default,
        show_default=default is not None,
        help=help_text,
        shell_complete=completion.targets,
    )


REMOTE = target_option(
    "cloud or remote:BOX (default: cloud; without a Modal token, the only known box)."
)

VOLUME = click.argument("volume", shell_complete=completion.volumes)

RUN = click.argument("run", required=False, metavar="[RUN]", shell_complete=completion.runs)

ALL = click.option(
    "--all",
    "everything",
    is_flag=True,
    help="checkpoints: every checkpoint and every file of a run.",
)
