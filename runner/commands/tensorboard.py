"""Show loss curves in TensorBoard; Ctrl-C stops the server.

\b
  runner tensorboard              all runs on this machine
  runner tensorboard warm         one run, also while it trains on Modal
"""

import click

from runner import completion
from runner.console import CliContext


@click.command(help=__doc__)
@click.argument("run", required=False, metavar="[RUN]", shell_complete=completion.runs)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=6006,
    envvar="TENSORBOARD_PORT",
    metavar="PORT",
    show_default=True,
    help="Port on this machine.",
)
@click.pass_obj
def command(cli: CliContext, run: str | None, port: int) -> int:
    from runner.views.tensorboard import serve

    return serve(cli, run, port)
