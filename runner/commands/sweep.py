"""Run many trials of a recipe or an experiment, under one budget.

\b
FILE says what is varied and which metric counts (docs/sweeps.md):
  runner sweep configs/sweep_lr.yaml --dry-run
  runner sweep configs/sweep_lr.yaml --target cloud --max-parallel 4 --budget 20

Ctrl-C stops the trials at work, which write their checkpoints; the same line
goes on, also after a crash, and repeats nothing that is done.
"""

import click

from runner import completion
from runner.cli_options import DEVICE, DRY_RUN, JSON, YES
from runner.commands.cloud import REGION, TIMEOUT
from runner.console import CliContext


@click.command(help=__doc__)
@click.argument("file", shell_complete=completion.files)
@click.option(
    "--target",
    metavar="TARGET",
    default="host",
    help="host (default), local or cloud.",
    shell_complete=completion.targets,
)
@click.option(
    "--name", metavar="SWEEP", help="Its runs are SWEEP-001 and so on; by default the file's name."
)
@click.option(
    "--max-parallel", type=click.IntRange(1, 64), metavar="N", help="Trials at once: 1; cloud: 4."
)
@click.option("--budget", metavar="USD", help="cloud: most that all trials together may cost.")
@click.option(
    "--gpu", metavar="NAME[:N]", help="cloud: of each trial.", shell_complete=completion.gpus
)
@TIMEOUT
@REGION
@DEVICE
@click.option("--smoke/--no-smoke", default=True, help="A run of a few steps comes first, or not.")
@click.option("--retry-failed", is_flag=True, help="Try those again that failed.")
@DRY_RUN
@JSON
@YES
@click.pass_obj
def command(
    cli: CliContext,
    file: str,
    target: str,
    name: str | None,
    max_parallel: int | None,
    budget: str | None,
    gpu: str | None,
    timeout: str | None,
    region: str | None,
    device: str | None,
    smoke: bool,
    retry_failed: bool,
    dry_run: bool,
    as_json: bool,
    yes: bool,
) -> int:
    from runner.sweep.launch import SweepLine, sweep
    from runner.targets.modal.options import parse_options

    line = SweepLine(
        file,
        target,
        name,
        max_parallel,
        budget,
        device,
        smoke,
        retry_failed,
        dry_run,
        as_json,
        yes,
        parse_options(gpu=gpu, timeout=timeout, region=region),
    )
    return sweep(cli, line)
