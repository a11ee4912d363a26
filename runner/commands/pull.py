"""Download files from a volume on Modal or a box; identical files are skipped.

\b
  runner pull checkpoints my_run     the newest complete checkpoint and the records
  runner pull checkpoints --all      every checkpoint of every run
  runner pull checkpoints my_run --watch
  runner pull data fineweb --dest /big/disk

PATH is a run or a path in the volume; without it, the whole volume is downloaded.
After an interruption, run the same command again to continue.
"""

import click

from runner import completion
from runner.cli_options import REMOTE, VOLUME, Number, transfer_options
from runner.console import CliContext


@click.command(help=__doc__)
@VOLUME
@click.argument("path", default="", metavar="[RUN|PATH]", shell_complete=completion.paths)
@click.option(
    "--dest",
    metavar="DIR",
    help="Folder to download to; by default volumes/VOLUME.",
)
@click.option("--watch", is_flag=True, help="checkpoints: keep downloading until the run ends.")
@click.option(
    "--interval",
    type=Number(0.1),
    default=10.0,
    metavar="SECONDS",
    show_default=True,
    help="Seconds between two checks with --watch.",
)
@REMOTE
@transfer_options
@click.pass_obj
def command(
    cli: CliContext,
    volume: str,
    path: str,
    dest: str | None,
    target: str | None,
    everything: bool,
    watch: bool,
    interval: float,
    dry_run: bool,
    as_json: bool,
    yes: bool,
) -> int:
    from pathlib import Path

    from runner.console import confirm
    from runner.errors import RunnerError, usage
    from runner.transfer.mapping import exclusive, open_mapping
    from runner.transfer.plan import print_result, result_to_json, show_plan
    from runner.transfer.pull import Pull, watch_run

    if watch and (volume != "checkpoints" or dry_run):
        raise usage("--watch needs a run and no --dry-run: `runner pull checkpoints RUN --watch`")
    folder = cli.cwd / Path(dest).expanduser() if dest else None
    # --watch can start before the account's first run, whose launch creates the volume.
    mapping = open_mapping(cli, volume, folder, create=watch, target=target)
    confirmed = yes
    try:
        with exclusive(mapping, cli.info):
            pull = Pull(mapping, path, everything)
            if dry_run:
                show_plan(cli, pull.plan, as_json)
                return int(bool(pull.plan.refused))
            reasons = pull.confirmation_reasons()
            if reasons and not confirm(cli, reasons, "pull anyway", yes):
                return 103
            confirmed = yes or bool(reasons)
            for note in pull.plan.notes:
                cli.info(note)
            if not watch:
                result = pull.execute(cli)
                print_result(cli, result, "pulled", f"into {mapping.root}")
    except RunnerError as error:
        if not watch or error.exit_code != 102:
            raise  # a run that has just started may have no folder yet
    if watch:
        result = watch_run(cli, mapping, path, everything, interval, replace_active=confirmed)
    if as_json:
        cli.json(result_to_json(result, volume=volume, folder=str(mapping.root)))
    return result.status
