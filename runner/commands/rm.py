"""Delete a file, or with -r a folder, from a volume in the cloud. It asks first.

\b
  runner rm checkpoints warm/step_00001000 -r
"""

import click

from job.format import byte_size
from runner.cli_options import VOLUME, YES
from runner.console import CliContext


@click.command(help=__doc__)
@VOLUME
@click.argument("path")
@click.option("-r", "--recursive", is_flag=True, help="A folder and all that is in it.")
@YES
@click.pass_obj
def command(cli: CliContext, volume: str, path: str, recursive: bool, yes: bool) -> int:
    from runner.console import confirm
    from runner.errors import usage
    from runner.targets.modal.runs import is_at_work
    from runner.transfer.mapping import nothing_there, open_mapping
    from runner.transfer.progress import count

    place = open_mapping(cli, volume)
    path = path.strip("/")
    if not path:
        raise usage("that is the whole volume; name a file or folder in it")
    try:
        found = place.files.listing(path)
    except FileNotFoundError as error:
        raise nothing_there(place, path) from error
    is_file = [entry.path for entry in found] == [path]
    if not is_file and not recursive:
        raise usage(f"{path} is a folder; with -r it goes with all that is in it: `{cli.line} -r`")
    files = [entry for entry in found if entry.kind != "directory"]
    facts = [
        f"{volume}/{path}: {count(len(files), 'file')}, {byte_size(sum(f.size for f in files))}"
    ]
    beats = [f.modified for f in files if f.path == f"{path}/heartbeat"]
    if place.has_runs and is_at_work(place.files, path, beats[0] if beats else None):
        facts.append(f"run {path} is at work")
    if not confirm(cli, facts, "delete it from the cloud for good", yes):
        return 103
    place.files.remove(path, recursive=not is_file)
    cli.info(f"deleted {volume}/{path}")
    return 0
