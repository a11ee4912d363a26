"""Open a shell with the same image, code and volumes as a job.

\b
In the container on this machine, or with --gpu or --on cloud in a sandbox of
Modal. A command behind it runs instead:
  runner shell python -V
  runner shell --gpu H100
  runner shell --gpu H100 nvidia-smi

In the cloud it shows the price and asks; -y answers. It ends when you leave
it, or after --idle minutes without a key; no key or token of yours goes in.
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
    help="In the cloud, with this GPU: H100, L4, A100-80GB:2.",
    shell_complete=completion.gpus,
)
@click.option(
    "--on", type=click.Choice(["local", "cloud"]), help="By default local, or cloud with --gpu."
)
@click.option(
    "--idle",
    type=click.FloatRange(min=0.02),  # a second; bash takes 0 for no end at all
    default=15.0,
    metavar="MINUTES",
    show_default=True,
    help="cloud: ends it.",
)
@YES
@click.argument("words", nargs=-1, metavar="[COMMAND ...]", type=click.UNPROCESSED)
@click.pass_obj
def command(
    cli: CliContext, gpu: str | None, on: str | None, idle: float, yes: bool, words: tuple[str, ...]
) -> int:
    if on == "local" and gpu:
        from runner.errors import usage

        raise usage(
            "the container on this machine has the GPUs that there are; leave out --gpu, or --on local"
        )
    if gpu or on == "cloud":
        from runner.project import find_checkout
        from runner.targets.modal.sandbox import run_shell

        return run_shell(cli, find_checkout(cli.cwd), gpu, words, idle * 60, yes)
    from runner.targets.compose_project import run_service

    return run_service(cli, "shell", words)
