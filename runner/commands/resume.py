"""Take up a run from its newest checkpoint, with the recipe it has.

It goes on where it was last, or with --on on another target: the volumes of
the host and of the container are the same folders.
"""

import click

from runner import completion
from runner.arguments import DETACH, DEVICE, DRY_RUN, GPU, JSON, YES, CommandLine
from runner.terminal import Environment


@click.command(help=__doc__)
@click.argument("run", shell_complete=completion.runs)
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.option("--on", metavar="TARGET", help="host or local; by default where it was last.")
@GPU
@DEVICE
@DRY_RUN
@DETACH
@JSON
@YES
@click.pass_obj
def command(
    env: Environment,
    run: str,
    overrides: tuple[str, ...],
    on: str | None,
    gpu: int | None,
    device: str | None,
    dry_run: bool,
    detach: bool,
    as_json: bool,
    yes: bool,
) -> int:
    from runner.launch import carry_out
    from runner.resume import resume_request

    line = CommandLine((), run, gpu, device, None, None, dry_run, detach, as_json, yes)
    target, request = resume_request(env, line, overrides, on)
    return carry_out(env, target, request, line)
