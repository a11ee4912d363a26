"""Copy files to and from the volumes on Modal or a box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click

from job.format import byte_size
from runner import completion
from runner.cli_options import JSON, REMOTE, VOLUME, Number, transfer_options
from runner.console import CliContext, confirm
from runner.errors import RunnerError, usage

if TYPE_CHECKING:
    from runner.targets.blocks import RemoteEntry


@click.command()
@VOLUME
@click.argument("path", default="")
@REMOTE
@JSON
@click.pass_obj
def ls_command(cli: CliContext, volume: str, path: str, target: str | None, as_json: bool) -> None:
    """List the files of a volume on Modal or a box, with the total size of each folder.

    \b
      runner ls checkpoints
      runner ls checkpoints my_run
    """
    from runner.transfer.mapping import open_mapping, remote_not_found

    mapping = open_mapping(cli, volume, target=target)
    try:
        entries = add_up(mapping.files.listing(path), path.strip("/"))
    except FileNotFoundError as error:
        if path.strip("/"):
            raise remote_not_found(mapping, path) from error
        entries = []
    if as_json:
        cli.json(entries)
        return
    for entry in entries:
        files = f"{entry.files:,} files" if entry.is_folder else ""
        when = datetime.fromtimestamp(entry.modified).strftime("%Y-%m-%d %H:%M")
        name = f"{ascii(entry.path)[1:-1]}{'/' if entry.is_folder else ''}"
        cli.write(f"{byte_size(entry.size):>10}  {files:>12}  {when}  {name}")
    if len(entries) > 1:
        count, size = sum(entry.files for entry in entries), sum(entry.size for entry in entries)
        cli.info(f"{byte_size(size):>10}  {count:,} files in total")
    if not entries:
        cli.info(f"{volume}/{path} is empty; `runner push {volume} PATH` uploads files")


@dataclass(frozen=True)
class ListedEntry:
    """A file, or a folder with the sums of all files in it."""

    path: str
    size: int
    files: int
    modified: float
    is_folder: bool = False


def add_up(entries: Sequence[RemoteEntry], folder: str) -> list[ListedEntry]:
    """Return the files and folders directly in ``folder`` by name, from its recursive listing."""
    depth = len(PurePosixPath(folder).parts) + 1
    entries_by_name: dict[str, ListedEntry] = {}
    for entry in entries:
        path, is_file = "/".join(entry.path.split("/")[:depth]), entry.kind != "directory"
        is_folder = path != entry.path or not is_file
        known = entries_by_name.get(path) or ListedEntry(
            path, 0, 0, float(entry.modified), is_folder
        )
        entries_by_name[path] = replace(
            known,
            size=known.size + (entry.size if is_file else 0),
            files=known.files + is_file,
            modified=max(known.modified, float(entry.modified)),
        )
    return [entries_by_name[path] for path in sorted(entries_by_name)]


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
@transfer_options
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
@transfer_options
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
