"""Show curves in the browser; Ctrl-C ends it.

\b
  runner tensorboard              of all runs on this machine
  runner tensorboard warm         of one run; of the cloud too, while it trains
"""

import click

from runner.command_line import completion
from runner.terminal import Environment


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
def command(env: Environment, run: str | None, port: int) -> int:
    from runner.tensorboard import serve

    return serve(env, run, port)
