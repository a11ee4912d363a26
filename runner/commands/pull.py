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
    from runner.transfer.mapping import exclusive, open_mapping
    from runner.transfer.progress import print_result, result_to_json, show_plan
    from runner.transfer.pull import Pull, watch_run

    if watch and (volume != "checkpoints" or dry_run):
        raise usage("--watch follows a run: `runner pull checkpoints RUN --watch`")
    folder = cli.cwd / Path(into).expanduser() if into else None
    # A watch may begin before the first run of an account, whose launch makes the volume.
    mapping = open_mapping(cli, volume, folder, create=watch)
    confirmed = yes
    try:
        with exclusive(mapping, cli.info):
            pull = Pull(mapping, path, everything)
            if dry_run:
                show_plan(cli, pull.plan, as_json)
                return int(bool(pull.plan.refused))
            objections = pull.objections()
            if objections and not confirm(cli, objections, "pull over it anyway", yes):
                return 103
            confirmed = yes or bool(objections)
            for note in pull.plan.notes:
                cli.info(note)
            if not watch:
                result = pull.execute(cli)
                print_result(cli, result, "pulled", f"into {mapping.root}")
    except RunnerError as error:
        if not watch or error.exit_code != 102:
            raise  # a run that was started just now may not have its folder yet
    if watch:
        result = watch_run(cli, mapping, path, everything, every, replace_active=confirmed)
    if as_json:
        cli.json(result_to_json(result, volume=volume, folder=str(mapping.root)))
    return result.status
