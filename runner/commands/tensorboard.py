"""Show curves in the browser; Ctrl-C ends it.

\b
  runner tensorboard              of all runs on this machine
  runner tensorboard warm         of one run; of the cloud too, while it trains
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
    show_default=True,
    help="On this machine.",
)
@click.pass_obj
def command(cli: CliContext, run: str | None, port: int) -> int:
    from runner.views.tensorboard import serve

    return serve(cli, run, port)
