"""List the files of a volume on Modal or a box, with the total size of each folder.

\b
  runner ls checkpoints
  runner ls checkpoints my_run
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import click

from job.format import byte_size
from runner.cli_options import JSON, REMOTE, VOLUME
from runner.console import CliContext

if TYPE_CHECKING:
    from runner.targets.blocks import RemoteEntry


@click.command(help=__doc__)
@VOLUME
@click.argument("path", default="")
@REMOTE
@JSON
@click.pass_obj
def command(cli: CliContext, volume: str, path: str, target: str | None, as_json: bool) -> int:
    from datetime import datetime

    from runner.transfer.mapping import open_mapping, remote_not_found

    mapping = open_mapping(cli, volume, target=target)
    try:
        entries = add_up(mapping.files.listing(path), path.strip("/"))
    except FileNotFoundError as error:
        if path.strip("/"):
            raise remote_not_found(mapping, path) from error
        entries = []
    if as_json:
        cli.json([asdict(entry) for entry in entries])
        return 0
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
    return 0


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
