"""Show the runs' curves in the browser; Ctrl-C ends it.

\b
  runner tensorboard
"""

import click

from runner.terminal import Environment


@click.command(help=__doc__)
@click.pass_obj
def command(env: Environment) -> int:
    from runner.docker.services import up_service

    return up_service(env, "tensorboard")
