"""The command line.

Each command is a file under ``runner/commands/``: its name is the command's, its docstring the help text,
and ``command`` in it what runs. It is imported when it is typed and not before, so that ``runner --help``
imports none of them; the short texts are the first lines of the files.
"""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from runner.cli_options import refuse_empty
from runner.console import CliContext
from runner.errors import RunnerError, did_you_mean

COMMANDS = Path(__file__).parent / "commands"

ENVIRONMENT = (
    (
        "DATA_PATH, CHECKPOINTS_PATH, CACHE_PATH",
        "the volumes of `runner host`, in place of volumes/*",
    ),
    (
        "MODAL_TOKEN_ID, MODAL_TOKEN_SECRET, MODAL_PROFILE",
        "who you are on Modal, in place of ~/.modal.toml",
    ),
    ("WANDB_API_KEY, HF_TOKEN", "handed to jobs that ask for them; never shown or written down"),
    ("GPT_RUNNER_PRICES", "a file with your own prices of GPUs (docs/cost.md)"),
    ("NO_COLOR", "if set, no colours"),
)
FILES = (
    ("configs/*.yaml", "recipes, sweeps and pipelines; a recipe's name is its file's"),
    ("volumes/", "data, checkpoints (a folder a run) and cache"),
    (".env", "variables and keys for jobs, and the compose files; `runner doctor --fix` writes it"),
    ("prices.yaml", "your own prices, here or in ~/.config/gpt-runner/"),
)


class Commands(click.Group):
    """A group whose commands are the files of a folder."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every file of the folder that has no leading underscore."""
        return sorted(path.stem for path in COMMANDS.glob("*.py") if not path.stem.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the file of ``cmd_name``; None where there is none."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = import_module(f"runner.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        command.name = cmd_name
        return refuse_empty(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with our did-you-mean."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from runner.jobs import JOBS

            guess = did_you_mean(args[0], self.list_commands(ctx))
            if args[0] in JOBS:
                guess = f"; a job is done on a target: `runner host {args[0]}`, or local, or cloud"
            ctx.fail(f"no command '{args[0]}'{guess or '; `runner --help` lists them'}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help text, without importing any command."""
        rows = [(name, first_line(COMMANDS / f"{name}.py")) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What a manual page has besides: exit status, environment, files, where to read on."""
        from job.exit_status import ExitStatus

        statuses = [(str(status.value), status.meaning) for status in ExitStatus]
        for title, rows in (
            ("Exit status", statuses),
            ("Environment", ENVIRONMENT),
            ("Files", FILES),
        ):
            with formatter.section(title):
                formatter.write_dl(rows, col_max=18)
        with formatter.section("See also"):
            formatter.write_text(
                "`runner COMMAND --help` for each command, with examples; docs/runner.md to begin with"
            )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the line as typed: messages repeat it."""
        ctx.meta["runner.line"] = shlex.join(["runner", *args])
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As click does, after click was told of the shell that it does not know."""
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it returns is the exit code. Errors become one line unless --debug."""
        try:
            status = super().invoke(ctx)
            sys.stdout.flush()
        except (click.exceptions.Exit, click.Abort, click.UsageError):
            raise
        except BrokenPipeError:  # `| head -1` has had enough: the end, without a word
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except Exception as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            raise _as_one_line(error, debug=bool(ctx.params.get("debug"))) from error
        ctx.exit(int(status or 0))


def first_line(path: Path) -> str:
    """The first line of a module's docstring, read without importing or parsing it."""
    with path.open(encoding="utf-8") as file:
        return file.readline().strip().strip('"').strip()


def _as_one_line(error: Exception, debug: bool) -> click.ClickException:
    if isinstance(error, click.ClickException):
        return error
    if type(error).__name__ == "RecipeError":  # by name: importing it would load pydantic
        return RunnerError(str(error), status=_usage_status())
    if type(error).__name__ == "Unavailable":  # by name too: nothing of the cloud is loaded here
        return RunnerError(
            f"Modal does not answer: {error}; check the network and type the same again"
        )
    if isinstance(error, OSError):
        from job.disk import in_words

        return RunnerError(f"{in_words(error)}; `runner doctor` checks this machine")
    where = "" if debug else "; this is a fault of the runner: `runner --debug ...` shows where"
    return RunnerError(f"{type(error).__name__}: {error}{where}")


def _usage_status() -> Any:
    from job.exit_status import ExitStatus

    return ExitStatus.USAGE


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"runner {version('gpt-runner')}")
    except PackageNotFoundError:
        click.echo("runner (from a checkout; `pip install .` gives it a version)")
    ctx.exit()


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print it.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """Train GPT models: one job, the same in a container, on this machine and in the cloud.

    \b
    runner local                          train the default recipe in the container
    runner host                           the same as a process of this machine
    runner cloud --gpu H100 gpt2_124m     the same on Modal; it shows the price and asks
    runner watch                          the newest run while it lives
    runner pull checkpoints               bring what the cloud has made here
    runner host sample                    text from the newest run

    Facts go to stdout and talk to stderr. --json makes the facts JSON.
    """
    ctx.ensure_object(CliContext)
    ctx.obj.debug = debug
    ctx.obj.line = ctx.meta["runner.line"]


if __name__ == "__main__":
    main()
