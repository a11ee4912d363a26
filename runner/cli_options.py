"""The arguments that every launching command shares, defined once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import click

from runner import completion
from runner.console import CliContext
from runner.errors import usage
from runner.request import LaunchArguments


class LaunchCommand(click.Command):
    """Keeps what stands behind ``--`` apart: those words are the user's command, and none of them is ours."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The words before ``--``, as click does."""
        at = args.index("--") if "--" in args else len(args)
        ctx.meta[COMMAND_WORDS] = tuple(args[at + 1 :])
        if (
            at < len(args)
            and not "".join(args[at + 1 : at + 2]).strip()
            and not ctx.resilient_parsing
        ):
            raise usage("nothing to run stands behind --; write it behind --: -- python train.py")
        ours = args[:at]
        try:
            return super().parse_args(ctx, list(ours))
        except click.NoSuchOption as error:
            setting = as_setting(error.option_name, ours)
            if setting:
                raise usage(
                    f"no option {error.option_name}; a setting of the recipe is written {setting}"
                ) from None
            raise


COMMAND_WORDS = "runner.command"

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

DETACH = click.option(
    "--detach", is_flag=True, help="Start it and return; it outlives this terminal."
)

JSON = click.option("--json", "as_json", is_flag=True, help="Print facts as JSON on stdout.")

VOLUME = click.argument("volume", shell_complete=completion.volumes)

YES = click.option("-y", "--yes", is_flag=True, help="Answer every question with yes.")

OF_A_COMMAND: list[Callable[..., Any]] = [
    click.option(
        "--dir",
        "folder",
        metavar="DIR",
        help="command, run: the folder that goes with it; by default here, or the file's.",
        shell_complete=completion.folders,
    ),
    click.option(
        "--setup",
        multiple=True,
        metavar="LINE",
        help="command, run: adds to the image first, as `pip install ...`; `none`: no requirements.txt either.",
    ),
    click.option(
        "--keep",
        multiple=True,
        metavar="PATH=VOLUME",
        help="command: this path of the folder lies on a volume: out=checkpoints.",
    ),
    click.option(
        "--resume-with", metavar="WORDS", help="command: added in attempts after the first ..."
    ),
    click.option("--resume-if", metavar="PATH", help="command: ... where there is such a file."),
]


def transfer_options(function: Callable[..., int]) -> Callable[..., Any]:
    """The options that `push` and `pull` share; parameters everything, dry_run, as_json and yes."""
    decorated: Any = function
    every_step = click.option(
        "--all",
        "everything",
        is_flag=True,
        help="checkpoints: every step, and every file of a run.",
    )
    for option in (YES, JSON, DRY_RUN, every_step):
        decorated = option(decorated)
    result: Callable[..., Any] = decorated
    return result


def launch_arguments(
    function: Callable[..., int], gpu: Callable[[Any], Any] = GPU
) -> Callable[..., Any]:
    """Give a command the shared arguments; it is called as ``function(env, line, **own_options)``.

    ``gpu`` replaces the option --gpu for a target that names its GPUs; it then has another parameter's name.
    """

    @click.pass_obj
    @wraps(function)
    def command(cli: CliContext, /, **given: Any) -> int:
        fields = LaunchArguments.__dataclass_fields__.values()
        given["command"] = click.get_current_context().meta.get(COMMAND_WORDS, ())
        line = LaunchArguments(
            **{field.name: given.pop(field.name, field.default) for field in fields}
        )
        return function(cli, line, **given)

    options: list[Callable[[Any], Any]] = [
        click.argument(
            "words",
            nargs=-1,
            metavar="[JOB] [RECIPE] [key=value ...] | -- COMMAND ...",
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
        click.option(
            "--source", metavar="S", help="prepare: the text, instead of the recipe's source."
        ),
        click.option(
            "--shards",
            type=click.IntRange(min=1),
            metavar="N",
            help="prepare: training shards to download, of a published dataset.",
        ),
        click.option("--force", is_flag=True, help="prepare: replace the dataset that is there."),
        click.option("--into", metavar="DIR", help="export: the folder to write."),
        click.option(
            "--choices",
            metavar="FILE",
            help="evaluate: questions of multiple choice, a JSON line each.",
        ),
        click.option(
            "--param",
            "params",
            multiple=True,
            metavar="K=V",
            help="run: a parameter of the file's train(); key=value alone is the same.",
        ),
        *OF_A_COMMAND,
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


def refuse_empty(command: click.Command) -> click.Command:
    """The command, which refuses an empty value of any of its options: taken for none, it would be the default that
    is paid for, an H100."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.type is click.STRING:
            parameter.callback = _check_not_empty
    return command


def _check_not_empty(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, str) and not each.strip():
            option = max(parameter.opts, key=len)
            raise usage(
                f"{option} is empty; give it a value (is its variable set?), or leave {option} away"
            )
    return value


def as_setting(option: str, args: Sequence[str]) -> str:
    """``lr=1e-3`` for the option ``--lr`` among ``args``, where that is a key of the recipe; else ''."""
    from job.recipe import known_keys  # only for a mistake: it loads pydantic
    from job.recipe_loader import SYNONYMS

    key = option.lstrip("-").replace("-", "_")
    key = SYNONYMS.get(key, key)
    if key not in {name for full in known_keys() for name in (full, full.rpartition(".")[2])}:
        return ""
    at = next((n for n, word in enumerate(args) if word.partition("=")[0] == option), len(args))
    word, after = args[at : at + 1], args[at + 1 : at + 2]
    value = word[0].partition("=")[2] if word else ""
    if not value and after and not after[0].startswith("--") and "=" not in after[0]:
        value = after[0]
    return f"{key}={value or 'VALUE'}"
