"""Fetch files from a volume in the cloud; what is here and the same is skipped.

\b
PATH is a run or a path in the volume; without it, all of it:
  runner pull checkpoints warm       the newest complete checkpoint and the records
  runner pull checkpoints --all      every checkpoint of every run
  runner pull checkpoints warm --watch
  runner pull data fineweb --into /big/disk

It can be interrupted at any moment; the same line goes on from there.
"""

import click

from runner import completion
from runner.cli_options import VOLUME, transfer_options
from runner.console import CliContext


@click.command(help=__doc__)
@VOLUME
@click.argument("path", default="", metavar="[RUN or PATH]", shell_complete=completion.paths)
@click.option(
    "--into",
    metavar="DIR",
    help="The folder that stands for the volume; by default volumes/VOLUME.",
)
@click.option("--watch", is_flag=True, help="checkpoints: go on until the run ends.")
@click.option(
    "--every",
    type=click.FloatRange(min=0.1),
    default=10.0,
    metavar="SECONDS",
    show_default=True,
    help="--watch: between two looks.",
)
@transfer_options
@click.pass_obj
def command(
    cli: CliContext,
    volume: str,
    path: str,
    into: str | None,
    everything: bool,
    watch: bool,
    every: float,
    dry_run: bool,
    as_json: bool,
    yes: bool,
) -> int:
    from pathlib import Path

    from runner.console import confirm
    from runner.errors import RunnerError, usage
    from runner.transfer.mapping import alone, open_mapping
    from runner.transfer.progress import print_result, result_to_json, show_plan
    from runner.transfer.pull import Pull, watch_run

    if watch and (volume != "checkpoints" or dry_run):
        raise usage("--watch follows a run: `runner pull checkpoints RUN --watch`")
    folder = cli.cwd / Path(into).expanduser() if into else None
    # A watch may begin before the first run of an account, whose launch makes the volume.
    place = open_mapping(cli, volume, folder, create=watch)
    try:
        with alone(place, cli.info):
            pull = Pull(place, path, everything)
            if dry_run:
                show_plan(cli, pull.plan, as_json)
                return int(bool(pull.plan.refused))
            further = [f"run {run}" for run in pull.further_here()]
            if further and not confirm(cli, further, "pull the older state over it", yes):
                return 103
            for note in pull.plan.notes:
                cli.info(note)
            if not watch:
                outcome = pull.carry_out(cli)
                print_result(cli, outcome, "pulled", f"into {place.root}")
    except RunnerError as error:
        if not watch or error.exit_code != 102:
            raise  # a run that was started just now may not have its folder yet
    if watch:
        outcome = watch_run(cli, place, path, everything, every)
    if as_json:
        cli.json(result_to_json(outcome, volume=volume, folder=str(place.root)))
    return outcome.status
