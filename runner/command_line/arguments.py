"""The arguments that every launching command shares, defined once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

from runner.command_line import completion
from runner.command_line.mistyped import as_setting
from runner.errors import usage
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
    choices: str | None = None
    params: tuple[str, ...] = ()
    folder: str | None = None
    setup: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    resume_with: str | None = None
    resume_if: str | None = None
    command: tuple[str, ...] = ()  # what stands behind --
    shards: int | None = None
    force: bool = False

    @property
    def is_command(self) -> bool:
        """Whether a command of the user's was typed, or an option that only such a one has."""
        options = (self.folder, self.setup, self.keep, self.resume_with, self.resume_if)
        return bool(self.command) or any(options)


class LaunchCommand(click.Command):
    """Keeps what stands behind ``--`` apart: those words are the user's command, and none of them is ours."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The words before ``--``, as click does."""
        at = args.index("--") if "--" in args else len(args)
        ctx.meta[COMMAND_WORDS] = tuple(args[at + 1 :])
        if at < len(args) and not "".join(args[at + 1 : at + 2]).strip() and not ctx.resilient_parsing:
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
DETACH = click.option("--detach", is_flag=True, help="Start it and return; it outlives this terminal.")
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
    click.option("--resume-with", metavar="WORDS", help="command: added in attempts after the first ..."),
    click.option("--resume-if", metavar="PATH", help="command: ... where there is such a file."),
]


def transfer_options(function: Callable[..., int]) -> Callable[..., Any]:
    """The options that `push` and `pull` share; parameters everything, dry_run, as_json and yes."""
    decorated: Any = function
    every_step = click.option(
        "--all", "everything", is_flag=True, help="checkpoints: every step, and every file of a run."
    )
    for option in (YES, JSON, DRY_RUN, every_step):
        decorated = option(decorated)
    result: Callable[..., Any] = decorated
    return result


def launch_arguments(function: Callable[..., int], gpu: Callable[[Any], Any] = GPU) -> Callable[..., Any]:
    """Give a command the shared arguments; it is called as ``function(env, line, **own_options)``.

    ``gpu`` replaces the option --gpu for a target that names its GPUs; it then has another parameter's name.
    """

    @click.pass_obj
    @wraps(function)
    def command(env: Environment, /, **given: Any) -> int:
        fields = CommandLine.__dataclass_fields__.values()
        given["command"] = click.get_current_context().meta.get(COMMAND_WORDS, ())
        line = CommandLine(**{field.name: given.pop(field.name, field.default) for field in fields})
        return function(env, line, **given)

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
        click.option("--source", metavar="S", help="prepare: the text, instead of the recipe's source."),
        click.option(
            "--shards",
            type=click.IntRange(min=1),
            metavar="N",
            help="prepare: training shards to download, of a published dataset.",
        ),
        click.option("--force", is_flag=True, help="prepare: replace the dataset that is there."),
        click.option("--into", metavar="DIR", help="export: the folder to write."),
        click.option(
            "--choices", metavar="FILE", help="evaluate: questions of multiple choice, a JSON line each."
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
