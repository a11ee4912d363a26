"""Copy files to and from the volumes on Modal or a box."""

from __future__ import annotations

from pathlib import Path

import click

from runner import completion
from runner.cli_options import ALL, DRY_RUN, JSON, REMOTE, VOLUME, YES, Number
from runner.console import CliContext, confirm
from runner.errors import RunnerError, usage


@click.command()
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
@ALL
@DRY_RUN
@JSON
@YES
@click.pass_obj
def pull_command(
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
    """Download files from a volume on Modal or a box; identical files are skipped.

    \b
      runner pull checkpoints my_run     the newest complete checkpoint and the records
      runner pull checkpoints --all      every checkpoint of every run
      runner pull checkpoints my_run --watch
      runner pull data fineweb --dest /big/disk

    PATH is a run or a path in the volume; without it, the whole volume is downloaded.
    After an interruption, run the same command again to continue.
    """
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
            if reasons:
                confirm(cli, reasons, "pull anyway", yes)
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


@click.command()
@VOLUME
@click.argument("path", shell_complete=completion.paths)
@click.option(
    "--dest", metavar="PATH", help="Path in the volume; by default the name of the file or folder."
)
@REMOTE
@ALL
@DRY_RUN
@JSON
@YES
@click.pass_obj
def push_command(
    cli: CliContext,
    volume: str,
    path: str,
    dest: str | None,
    target: str | None,
    everything: bool,
    dry_run: bool,
    as_json: bool,
    yes: bool,
) -> int:
    """Upload files to a volume on Modal or a box; identical files are skipped.

    \b
      runner push data ./my_corpus            to data/my_corpus
      runner push data ./my_corpus --dest texts
      runner push checkpoints my_run          the newest checkpoint and the records

    PATH is a file, a folder, or for checkpoints a run. After an interruption, run the same
    command again to continue.
    """
    from runner.transfer.mapping import local_folder, open_mapping
    from runner.transfer.plan import print_result, result_to_json, show_plan
    from runner.transfer.push import Push, find_source, remote_path

    source = find_source(local_folder(cli, volume), volume == "checkpoints", path, cli.cwd)
    mapping = open_mapping(cli, volume, create=not dry_run, target=target)
    remote = remote_path(mapping, source, dest)
    push = Push(mapping, source, remote, everything)
    if dry_run:
        show_plan(cli, push.plan, as_json)
        return int(bool(push.plan.refused))
    reasons = push.confirmation_reasons(cli)
    if reasons:
        confirm(cli, reasons, "push anyway", yes)
    for note in push.plan.notes:
        cli.info(note)
    result = push.execute(cli)
    print_result(cli, result, "pushed", f"to {volume}/{remote} on {mapping.place}")
    if as_json:
        cli.json(result_to_json(result, volume=volume, path=remote))
    return result.status
