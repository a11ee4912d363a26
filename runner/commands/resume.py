"""Resume a run from its newest checkpoint, with the settings it was started with.

\b
  runner resume                           the newest run
  runner resume my_run
  runner resume my_run checkpoint_every=100
  runner resume my_run max_steps=2000
  runner resume my_run --target cloud --gpu H100

The run resumes on the target of its last attempt; --target moves it to a different one.
`host` and `local` share their volumes. To and from Modal, copy the run first with
`runner push checkpoints RUN` or `runner pull checkpoints RUN`.

Settings that would make it a different run, such as lr, are refused. max_steps can change
as long as no completed step depends on it: with schedule=constant, or before the last
decay_steps. Otherwise start a new run from its weights:

\b
  runner host quickstart --name longer init_from=my_run max_steps=2000
"""

from typing import Any

import click

from runner import completion
from runner.cli_options import (
    DETACH,
    DEVICE,
    DRY_RUN,
    JSON,
    MAX_COST,
    NOTIFY,
    QUEUE,
    SHARE,
    TAG,
    TARGET,
    TIMEOUT,
    YES,
)
from runner.console import CliContext
from runner.jobs import LaunchArguments


@click.command(help=__doc__)
@click.argument("args", nargs=-1, metavar="[RUN] [key=value ...]", shell_complete=completion.runs)
@TARGET
@click.option(
    "--gpu",
    metavar="N|NAME[:N]",
    help="Number of GPUs; on Modal NAME[:N], same as in `runner cloud`.",
    shell_complete=completion.gpus,
)
@TIMEOUT
@MAX_COST
@NOTIFY
@DEVICE
@DRY_RUN
@DETACH
@TAG
@QUEUE
@SHARE
@JSON
@YES
@click.pass_obj
def command(
    cli: CliContext,
    /,
    args: tuple[str, ...],
    target: str | None,
    gpu: str | None,
    timeout: float | None,
    max_cost: float | None,
    **other_options: Any,
) -> int:
    from runner.errors import usage
    from runner.launch.execute import run_request
    from runner.launch.parse import split_overrides
    from runner.launch.resume import resume_request
    from runner.runs.find import select_run
    from runner.targets.modal.options import parse_options

    names, overrides = split_overrides(args)
    if len(names) > 1:
        raise usage(f"unexpected '{names[1]}'; `runner resume` takes one run and key=value")
    resolved = select_run(cli, names[0] if names else None)
    arguments = LaunchArguments(args=tuple(overrides), name=resolved.state.run, **other_options)
    options = parse_options(gpu=gpu, timeout=timeout, max_cost=max_cost)
    chosen, request = resume_request(cli, resolved, arguments, target, options)
    if arguments.access is not None and chosen.has_remote_volumes:
        raise usage(
            f"--{arguments.access} is an option of host and local, whose runs use the same GPUs"
        )
    return run_request(cli, chosen, request, arguments)
