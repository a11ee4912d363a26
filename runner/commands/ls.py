"""List the files of a volume on Modal.

\b
  runner ls checkpoints
  runner ls checkpoints warm
"""

import click

from job.format import byte_size
from runner.cli_options import JSON, VOLUME
from runner.console import CliContext


@click.command(help=__doc__)
@VOLUME
@click.argument("path", default="")
@JSON
@click.pass_obj
def command(cli: CliContext, volume: str, path: str, as_json: bool) -> int:
    from dataclasses import asdict
    from datetime import datetime

    from runner.transfer.mapping import open_mapping, remote_not_found

    mapping = open_mapping(cli, volume)
    try:
        found = list(mapping.files.entries(path))
    except FileNotFoundError as error:
        if path.strip("/"):
            raise remote_not_found(mapping, path) from error
        found = []
    if as_json:
        cli.json([asdict(entry) for entry in found])
        return 0
    for entry in found:
        size = "" if entry.is_folder else byte_size(entry.size)
        when = datetime.fromtimestamp(entry.modified).strftime("%Y-%m-%d %H:%M")
        cli.write(f"{size:>10}  {when}  {ascii(entry.path)[1:-1]}{'/' if entry.is_folder else ''}")
    if not found:
        cli.info(f"{volume}/{path} is empty; `runner push {volume} PATH` uploads files")
    return 0
