"""Open a shell with the image, code and volumes of a job.

\b
  runner shell                       in the container on this machine
  runner shell python -V             run a command instead
  runner shell --gpu H100            in a sandbox on Modal
  runner shell --gpu H100 nvidia-smi

On Modal the runner shows the price and asks first; -y answers yes. The sandbox ends when
you leave the shell, or after --idle minutes without a keystroke. It gets none of your
keys or tokens.
"""

import click

from runner import completion
from runner.cli_options import YES
from runner.console import CliContext


@click.command(
    help=__doc__,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option(
    "--gpu",
    metavar="NAME[:N]",
    help="Run on Modal with this GPU: H100, L4, A100-80GB:2.",
    shell_complete=completion.gpus,
)
@click.option(
    "--target",
    type=click.Choice(["local", "cloud"]),
    help="By default local, or cloud with --gpu.",
)
@click.option(
    "--idle",
    type=click.FloatRange(min=0.02),  # about a second; bash reads 0 as no limit
    default=15.0,
    metavar="MINUTES",
    show_default=True,
    help="cloud: minutes without a keystroke after which the sandbox ends.",
)
@YES
@click.argument("words", nargs=-1, metavar="[COMMAND ...]", type=click.UNPROCESSED)
@click.pass_obj
def command(
    cli: CliContext,
    gpu: str | None,
    target: str | None,
    idle: float,
    yes: bool,
    words: tuple[str, ...],
) -> int:
    if words and words[0].startswith("-"):
        raise click.NoSuchOption(words[0], ctx=click.get_current_context())
    if target == "local" and gpu:
        from runner.errors import usage

        raise usage("--gpu is for Modal; the local container has all GPUs of this machine")
    if gpu or target == "cloud":
        from runner.project import find_checkout
        from runner.targets.modal.sandbox import run_shell

        return run_shell(cli, find_checkout(cli.cwd), gpu, words, idle * 60, yes)
    from runner.targets.compose_project import run_service

    return run_service(cli, "shell", words)
