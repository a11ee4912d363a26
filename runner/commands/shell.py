"""Open shells: in containers, sandboxes and active runs."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click

from job.run_record import RunStatus
from runner import completion
from runner.cli_options import ENV, FOLDER, PERSIST, SECRET, SETUP, YES, Number, target_option
from runner.commands.targets import COMMAND_ARGS, UserCommandParser
from runner.console import CliContext
from runner.errors import usage
from runner.jobs import LaunchArguments
from runner.launch.parse_command import command_request
from runner.project import find_checkout
from runner.request import SHELL_PREFIX, TargetOptions
from runner.runs.find import find_run
from runner.target import open_target
from runner.targets.modal import TARGET_NAME
from runner.targets.modal.options import parse_options


@click.command(cls=UserCommandParser)
@click.argument(
    "run", required=False, metavar="[RUN] [-- COMMAND ...]", shell_complete=completion.runs
)
@click.option(
    "--gpu",
    metavar="NAME[:N]",
    help="Run on Modal with this GPU: H100, L4, A100-80GB:2.",
    shell_complete=completion.gpus,
)
@target_option("host, local, cloud or remote:BOX; by default local, or cloud with --gpu.")
@FOLDER
@SETUP
@PERSIST
@ENV
@SECRET
@click.option(
    "--idle",
    type=Number(0.02),  # about a second; bash reads 0 as no limit
    default=15.0,
    metavar="MINUTES",
    show_default=True,
    help="cloud: minutes after which an idle or lost shell ends.",
)
@YES
@click.pass_obj
def shell_command(
    cli: CliContext,
    /,
    run: str | None,
    gpu: str | None,
    target: str | None,
    variables: tuple[str, ...],
    secrets: tuple[str, ...],
    idle: float,
    yes: bool,
    **values: Any,
) -> int:
    """Open a shell with a command's image, folder and volumes, or in an active run.

    \b
      runner shell                       in the container on this machine
      runner shell -- python -V          run a command instead
      runner shell --target remote:lab   in the container on another machine (a box)
      runner shell --gpu H100            in a sandbox on Modal
      runner shell --gpu H100 --dir ../nanoGPT --setup "pip install transformers"
      runner shell my_run                inside the active run `my_run`
      runner shell my_run -- nvidia-smi

    On Modal the runner shows the price and asks first; -y answers yes. The shell ends after
    --idle minutes without a keystroke at its prompt, and also --idle minutes after its
    connection was lost. Until then, the same command line attaches to it again. The shell
    gets none of your keys or tokens unless --env or --secret names them.
    """
    argv = click.get_current_context().meta.get(COMMAND_ARGS, ())
    if run is not None:
        if gpu or target or variables or secrets or any(values.values()):
            raise usage(
                f"a shell in run '{run}' uses the run's machine and files; remove the options"
            )
        return enter_run(cli, run, argv)
    target = target or (TARGET_NAME if gpu else "local")
    if target != TARGET_NAME and gpu:
        raise usage(
            f"--gpu {gpu} is for Modal; a shell on {target} has all GPUs of its machine: remove it"
        )
    if target != TARGET_NAME and secrets:
        raise usage(
            f"--secret {secrets[0]} is stored on Modal; on {target} use --env with the name of a "
            "variable"
        )
    arguments = LaunchArguments(job="command", command=argv, yes=yes, **values)
    options = parse_options(gpu=gpu, variables=variables, secrets=secrets)
    return run_shell(cli, target, arguments, options, idle * 60)


def run_shell(
    cli: CliContext,
    target_name: str,
    arguments: LaunchArguments,
    options: TargetOptions,
    idle_s: float,
) -> int:
    """Open the shell, attach to the open one with the same options, or run the command instead.

    A shell ends after ``idle_s`` seconds at its prompt without input, if its target bills.
    """
    argv = arguments.command
    target = open_target(target_name, cli, find_checkout(cli.cwd))
    if not argv and not cli.is_terminal:
        if target.bills:
            raise usage(
                f"a shell needs a terminal; without one, give a command: `{cli.line} -- python -V`"
            )
        argv = ("bash",)  # reads stdin
    target.check_configured()
    folder = arguments.folder
    if not (folder or arguments.setup or arguments.persist):
        folder = str(find_checkout(cli.cwd))
    arguments = replace(arguments, command=("bash",), metric=("none",), folder=folder)
    request = command_request(arguments, cli.cwd, None, options)
    record = {**request.command.as_record(), "options": [*options.names(), str(options)]}
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    name = f"{SHELL_PREFIX}{digest[:8]}"
    line = argv or session(name, idle_s if target.bills else None)
    request = replace(
        request, run=name, command=replace(request.command, argv=line), is_interactive=True
    )
    return target.open_shell(request, bool(argv), idle_s, arguments.yes)


def session(name: str, idle_s: float | None) -> tuple[str, ...]:
    """Return a command that opens a shell in tmux, or attaches to it if it is open.

    tmux keeps the shell if the connection is lost; it has no status line and no keys of its own
    here. Without tmux, a plain shell. TMOUT ends bash after so many seconds at its prompt.
    """
    # Next to tmux's socket: in /tmp itself another user could place a link of that name.
    status = f'"${{TMUX_TMPDIR:-/tmp}}/tmux-$(id -u)/{name}.status"'
    shell = (f"export TMOUT={int(idle_s)}; " if idle_s is not None else "") + "bash -i"
    settings = ("status off", "prefix None", "mouse on", "history-limit 50000")
    tmux = f"tmux -L {name} -f /dev/null " + r" \; ".join(f"set -g {line}" for line in settings)
    inner = shlex.quote(f"{shell}; echo $? > {status}")
    return (
        "bash",
        "-c",
        f"command -v tmux > /dev/null || {{ {shell}; exit; }}\n"
        # A client that lost its connection may end with the shell: it must not remove the file.
        f"tmux -L {name} has-session -t shell 2> /dev/null || rm -f {status}\n"
        rf"{tmux} \; new-session -A -s shell {inner}; exit $(cat {status})",
    )


def enter_run(cli: CliContext, run: str, argv: Sequence[str]) -> int:
    """Run ``argv``, by default a shell, inside the active run. Raises RunnerError."""
    resolved = find_run(cli, run)
    resolved.check_reachable()
    if not resolved.state.alive:
        status = resolved.state.status
        resume = (
            "" if status == RunStatus.FINISHED else f"resume it with `runner resume {run}`, or "
        )
        raise usage(
            f"run '{run}' is not active (status: {status}), so it can't be entered; {resume}"
            "open a shell without a run: `runner shell`"
        )
    if not argv and not cli.is_terminal:
        raise usage(f"a shell needs a terminal; give a command: `runner shell {run} -- nvidia-smi`")
    return resolved.target.enter(run, tuple(argv) or ("bash",))
