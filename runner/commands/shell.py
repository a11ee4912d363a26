"""Open a shell in the container, with the same code and volumes as a job.

A command behind it runs instead: runner shell python -V
"""

import click

from runner.terminal import Environment


@click.command(help=__doc__, context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, metavar="[COMMAND ...]", type=click.UNPROCESSED)
@click.pass_obj
def command(env: Environment, words: tuple[str, ...]) -> int:
    from runner.services import run_service

    return run_service(env, "shell", words)
