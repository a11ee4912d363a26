"""Take up a run from its newest checkpoint, with the recipe it has.

It goes on where it was last, or with --on on another target: the volumes of
the host and of the container are the same folders; to the cloud and back,
`runner push checkpoints RUN` and `runner pull checkpoints RUN` bring it.

Settings that would make it another run (lr, say) are refused. max_steps may
change where no step so far would have been another: with schedule=constant, or
before the last decay_steps. Else begin another run with its weights: the last
line.

\b
  runner resume warm
  runner resume warm checkpoint_every=100
  runner resume steady max_steps=2000
  runner resume warm --on cloud --gpu H100
  runner host quickstart --name longer init_from=warm max_steps=2000
"""

import click

from runner import completion
from runner.cli_options import DETACH, DEVICE, DRY_RUN, JSON, YES
from runner.console import CliContext
from runner.request import LaunchArguments


@click.command(help=__doc__)
@click.argument("run", shell_complete=completion.runs)
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.option(
    "--on",
    metavar="TARGET",
    help="host, local or cloud; by default where it was last.",
    shell_complete=completion.targets,
)
@click.option(
    "--gpu",
    metavar="N",
    help="GPUs: a number, in the cloud a name as in `runner cloud`.",
    shell_complete=completion.gpus,
)
@click.option("--timeout", metavar="TIME", help="cloud: longest time over all attempts.")
@click.option("--max-cost", metavar="USD", help="cloud: most that it may cost over all attempts.")
@DEVICE
@DRY_RUN
@DETACH
@JSON
@YES
@click.pass_obj
def command(
    cli: CliContext,
    run: str,
    overrides: tuple[str, ...],
    on: str | None,
    gpu: str | None,
    timeout: str | None,
    max_cost: str | None,
    device: str | None,
    dry_run: bool,
    detach: bool,
    as_json: bool,
    yes: bool,
) -> int:
    from runner.launch.execute import run_request
    from runner.launch.resume import resume_request
    from runner.targets.modal.options import parse_options

    line = LaunchArguments(
        name=run, device=device, dry_run=dry_run, detach=detach, as_json=as_json, yes=yes
    )
    options = parse_options(gpu=gpu, timeout=timeout, max_cost=max_cost)
    target, request = resume_request(cli, line, overrides, on, options)
    return run_request(cli, target, request, line)
