"""Run the trials of a sweep."""

from typing import Any

import click

from runner import completion
from runner.cli_options import (
    DEVICE,
    DOLLARS,
    DRY_RUN,
    JSON,
    NOTIFY,
    REGION,
    TAG,
    TIMEOUT,
    TRACKER,
    YES,
    Integer,
    parse_gpu,
    target_option,
)
from runner.console import CliContext


@click.command()
@click.argument("file", shell_complete=completion.files)
@target_option("host, local, cloud or remote:BOX.", "host")
@click.option(
    "--name",
    metavar="SWEEP",
    help="Name of the sweep; its runs are SWEEP-001, ... By default the name of the file.",
)
@click.option(
    "--max-parallel",
    type=Integer(1, 64),
    metavar="N",
    help="Trials to run at a time; by default 1, or 4 on Modal.",
)
@click.option(
    "--budget", type=DOLLARS, metavar="USD", help="cloud: maximum cost of all trials together."
)
@click.option(
    "--gpu",
    type=parse_gpu,
    metavar="NAME[:N]",
    help="cloud: GPUs of each trial.",
    shell_complete=completion.gpus,
)
@TIMEOUT
@REGION
@TAG
@TRACKER
@NOTIFY
@DEVICE
@click.option(
    "--smoke/--no-smoke",
    default=True,
    help="Run a few steps of one trial before the sweep (default), or skip this.",
)
@click.option("--retry-failed", is_flag=True, help="Run failed trials again.")
@DRY_RUN
@JSON
@YES
@click.pass_obj
def sweep_command(
    cli: CliContext, /, gpu: str | None, timeout: float | None, region: str | None, **values: Any
) -> int:
    """Run many trials of a recipe, an experiment or a command under one budget.

    \b
      runner sweep configs/sweep_lr.yaml --dry-run
      runner sweep configs/sweep_lr.yaml --target cloud --max-parallel 4 --budget 20

    FILE defines the search space and the metric to optimize (docs/sweeps.md). Ctrl-C stops
    the running trials, which save checkpoints. Run the same command again to continue the
    sweep; finished trials are not repeated.
    """
    from runner.sweep.launch import SweepArguments, run_sweep
    from runner.targets.modal.options import parse_options

    options = parse_options(gpu=gpu, timeout=timeout, region=region)
    return run_sweep(cli, SweepArguments(**values, target_options=options))
