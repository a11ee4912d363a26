"""The command line.

COMMANDS lists the commands. Only the file of the command that was typed is imported, so that
``runner --help`` stays fast.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import click

from job.files import name_in_errors
from runner.console import STDOUT, CliContext, open_closed_streams
from runner.errors import RunnerError, as_runner_error, did_you_mean, usage

# The commands by their file in runner/commands/, each with the first line of its help.
COMMANDS = {
    "targets": {
        "chat": "Talk to a trained network, which stays loaded.",
        "cloud": "Run a job on Modal: the same image and command, on GPUs billed by the second.",
        "host": "Run a job as a process on this machine.",
        "local": "Run a job in the container on this machine, with Docker Compose.",
        "remote": "Run a job in a container on another machine with Docker: `runner remote BOX`.",
        "serve": "Serve a trained network through an OpenAI-compatible API.",
    },
    "runs": {
        "logs": "Print the log of a run, running or finished.",
        "queue": "List the runs that use or wait for the GPUs of this machine.",
        "runs": "List the runs, newest first.",
        "status": "Show the status of a run: progress, loss, attempts, cost.",
        "stop": "Stop a run, or remove it from the queue. A training run saves a checkpoint first.",
        "watch": "Watch a run live: loss curves, throughput, cost, samples.",
    },
    "change": {
        "resume": "Resume a run from its newest checkpoint, with the settings it was started with.",
        "set": "Change settings of a live training run, or write a checkpoint now.",
    },
    "sweep": {
        "sweep": "Run many trials of a recipe, an experiment or a command under one budget.",
    },
    "shell": {
        "shell": "Open a shell with a command's image, folder and volumes, or in an active run.",
    },
    "transfer": {
        "pull": "Download files from a volume on Modal or a box; identical files are skipped.",
        "push": "Upload files to a volume on Modal or a box; identical files are skipped.",
    },
    "storage": {
        "cache": "List the jobs' caches by kind, with their sizes, or delete them.",
        "ls": "List the files of a volume on Modal or a box, with the total size of each folder.",
        "prune": "Delete old checkpoints, after asking; records, curves and samples remain.",
        "rm": "Delete runs, sweeps, or a path of a volume on Modal or a box, after asking.",
    },
    "views": {
        "compare": "Compare runs: the settings that differ, results, and curves in one plot.",
        "report": "Write a run as one HTML page: curves, samples, settings, attempts, cost.",
        "tensorboard": "Show loss curves in TensorBoard; Ctrl-C stops the server.",
    },
    "costs": {
        "estimate": "Compare the GPUs on Modal for a recipe: time, cost and memory.",
        "spend": "Show the cost of the runs on Modal: by the runner's records and by Modal's bill.",
    },
    "publish": {
        "emit": "Write a job file for another system: Slurm, Kubernetes, SkyPilot or dstack.",
        "image": "Publish the image of the jobs: `runner image push`.",
    },
    "setup": {
        "completion": "Print the script that completes commands, recipes, runs and GPUs with TAB.",
        "doctor": "Check this machine, the checkout, boxes and the Modal account.",
        "init": "Write a recipe, an experiment and .env.example into this folder, to start from.",
        "new": "Write an example experiment to edit: `runner new experiment NAME`.",
    },
}
MODULES = {name: file for file, names in COMMANDS.items() for name in names}
SHORT_FORMS = ("chat", "serve")  # `runner chat` is `runner host chat`

ENVIRONMENT = (
    (
        "DATA_PATH, CHECKPOINTS_PATH, CACHE_PATH",
        "`runner host`: folders of the volumes (default: volumes/data, ...)",
    ),
    ("MODAL_TOKEN_ID, MODAL_TOKEN_SECRET, MODAL_PROFILE", "Modal account (default: ~/.modal.toml)"),
    ("WANDB_API_KEY, HF_TOKEN", "passed to jobs that need them; never shown or recorded"),
    ("MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID", "tracking servers, also passed to jobs"),
    ("GPT_RUNNER_NOTIFY", "URL that gets a message when a run ends; same as --notify"),
    ("GPT_RUNNER_HOME", "home of an installed runner (default: ~/.local/share/gpt-runner)"),
    ("GPT_RUNNER_IMAGE", "image to pull instead of building one (docs/remote.md)"),
    ("GPT_RUNNER_VOLUMES", "prefix of the volumes on Modal and boxes (default: gpt-runner-)"),
    ("GPT_RUNNER_MONTHLY_CAP", "limit in US dollars for the runs of a month on Modal"),
    ("SERVE_TOKEN", "API key that requests to `runner serve` need"),
    ("GPT_RUNNER_PROXY_AUTH", "1: `runner cloud serve` also needs a proxy auth token of Modal"),
    ("GPT_RUNNER_PRICES", "file with your own GPU prices (docs/cost.md)"),
    ("NO_COLOR", "disables colors"),
)
FILES = (
    ("configs/*.yaml", "recipes, sweeps and pipelines; a recipe is named after its file"),
    ("volumes/", "data, checkpoints (one folder per run) and cache"),
    (".env", "variables and API keys for jobs and Compose; `runner doctor --fix` creates it"),
    ("prices.yaml", "your own GPU prices; also ~/.config/gpt-runner/prices.yaml"),
)


RENAMED_OPTIONS = {
    "--on": ("--target",),
    "--into": ("--output", "--dest"),
    "--to": ("--dest",),
    "--now": ("--force",),
    "--keep": ("--persist",),
    "--choices": ("--multiple-choice",),
    "--every": ("--interval",),
}
# click's message
EXTRA_ARGUMENT = re.compile(r"Got unexpected extra arguments? \((.*)\)", re.DOTALL)
RENAMED_COMMANDS = {"plan": "estimate"}

MIN_SIMILARITY = 0.7  # of a command that is suggested; `logs` for `bogus` has 0.67

# Objects allocated between garbage collections. Importing modal allocates 150,000; with Python's
# default of 700, collections take 13% of the CPU time of a launch.
GC_THRESHOLD = 200_000


class Commands(click.Group):
    """The commands in COMMANDS. The function of `stop` is `stop_command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names."""
        return sorted(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the file of ``cmd_name``; None if it does not exist."""
        if cmd_name not in MODULES:
            return None
        from runner.cli_options import refuse_empty  # not for `runner --help`

        module = import_module(f"runner.commands.{MODULES[cmd_name]}")
        if MODULES[cmd_name] == "targets":
            build = module.short_form if cmd_name in SHORT_FORMS else module.target_command
            return refuse_empty(build(cmd_name))
        return refuse_empty(getattr(module, f"{cmd_name}_command"))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; suggest one for an unknown name. `remote:BOX` is `remote BOX`."""
        if args and args[0].startswith("remote:"):
            args = ["remote", args[0].partition(":")[2], *args[1:]]
        if args and args[0] not in MODULES and not args[0].startswith("-"):
            from runner.jobs import JOBS

            name = args[0]
            if name in RENAMED_COMMANDS:
                raise usage(f"`runner {name}` is now `runner {RENAMED_COMMANDS[name]}`")
            hint = did_you_mean(name, MODULES, MIN_SIMILARITY)
            if name in (*JOBS, "pipeline"):
                hint = f"; a job runs on a target: `runner host {name}`, `local` or `cloud`"
            raise usage(f"unknown command '{name}'{hint or '; `runner --help` lists the commands'}")
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line, also if a standard stream is closed."""
        open_closed_streams()
        gc.set_threshold(GC_THRESHOLD)
        atexit.register(gc.freeze)  # no last collection: about a tenth of a short command
        return super().main(*args, **extra)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing any of them."""
        rows = [(name, COMMANDS[file][name]) for name, file in sorted(MODULES.items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write exit statuses, environment variables, files and the documentation."""
        from job.exit_status import ExitStatus

        statuses = [(str(status.value), status.meaning) for status in ExitStatus]
        for title, rows in (
            ("Exit status", statuses),
            ("Environment", ENVIRONMENT),
            ("Files", FILES),
        ):
            with formatter.section(title):
                formatter.write_dl(rows, col_max=18)
        with formatter.section("Documentation"):
            formatter.write_text("`runner COMMAND --help` for each command; docs/runner.md")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the command line as typed: messages repeat it."""
        ctx.meta["runner.args"] = [*args]
        ctx.meta["runner.line"] = shlex.join(["runner", *args])
        return super().parse_args(ctx, args)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Parse the arguments; report a mistake in one line."""
        try:
            with name_in_errors(STDOUT):  # --help may write to a full disk
                return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise explain_usage_error(error, args) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            raise as_runner_error(error, debug=False) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; its result is the exit status. An error becomes one line."""
        try:
            status = super().invoke(ctx)
            with name_in_errors(STDOUT):
                sys.stdout.flush()
        except (click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:  # `| head -1` closed the pipe: not an error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except Exception as error:
            debug = bool(ctx.params.get("debug"))
            if debug:
                import traceback

                traceback.print_exc()
            if isinstance(error, click.UsageError):
                raise explain_usage_error(error, ctx.meta["runner.args"]) from error
            raise as_runner_error(error, debug) from error
        ctx.exit(int(status or 0))


def explain_usage_error(error: click.UsageError, args: Sequence[str]) -> RunnerError:
    """Return click's error as one line that names the new spelling, the job or the help to read."""
    if isinstance(error, RunnerError):
        return error
    message = error.format_message().rstrip(".")
    if isinstance(error, click.NoSuchOption):
        from runner.commands.targets import explain_foreign_option

        parameters = error.ctx.command.params if error.ctx else ()
        known = {
            name
            for parameter in parameters
            if isinstance(parameter, click.Option)
            for name in parameter.opts
        }
        renamed = RENAMED_OPTIONS.get(error.option_name, ())
        for new in renamed:
            if new in known:
                return usage(f"{error.option_name} is now {new}")
        explained = explain_foreign_option(error, args)
        if explained:
            return usage(explained)
        hint = did_you_mean(error.option_name, known)
        message = f"unknown option {error.option_name}{hint}"
        if hint:
            return usage(message)
    named = [
        word for word in args[:1] if not word.startswith("-")
    ]  # click may not tell the command
    path = error.ctx.command_path if error.ctx is not None else " ".join(["runner", *named])
    if match := EXTRA_ARGUMENT.match(message):
        message = f"unexpected '{match[1].partition(' ')[0]}'"
    if isinstance(error, click.MissingParameter) and error.param is not None:
        from job.format import either
        from runner.cli_options import Choice

        if isinstance(choice := error.param.type, Choice):
            options = either(choice.choices)
            example = f"`{path} {choice.choices[0]}`"
            message = f"missing {error.param.name}; expected {options}, as in {example}"
    return usage(f"{message[:1].lower()}{message[1:]}; `{path} --help` shows the usage")


def _print_version(ctx: click.Context, _: click.Parameter, requested: bool) -> None:
    if not requested or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"runner {version('gpt-runner')}")
    except PackageNotFoundError:
        click.echo("runner (from a checkout; `pip install .` gives it a version)")
    ctx.exit()


@click.group(
    "runner",
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """Train GPT models in a container, on this machine or on Modal's GPUs.

    \b
    runner local                          train the default recipe in the container
    runner host                           train the default recipe as a process on this machine
    runner cloud --gpu H100 gpt2_124m     train on Modal; shows the price and asks
    runner remote BOX                     train on a box: another machine with Docker
    runner watch                          watch the newest run
    runner pull checkpoints               download the runs on Modal
    runner host sample                    generate text from the newest run
    runner chat                           talk to the newest run

    Results go to stdout and messages to stderr. --json prints results as JSON.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # names and results may not fit its encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    ctx.ensure_object(CliContext)
    ctx.obj.debug = debug
    if ctx.invoked_subcommand is None:
        ctx.obj.write(ctx.get_help())
        return
    if (ctx.obj.cwd / ".env").is_file():
        from runner.project import with_folder_secrets

        ctx.obj.environ = with_folder_secrets(ctx.obj.environ, ctx.obj.cwd)
    ctx.obj.line = ctx.meta["runner.line"]


if __name__ == "__main__":
    main()
