"""Delete a file or folder from a volume on Modal, after a question.

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
@click.option("-r", "--recursive", is_flag=True, help="Delete a folder and its files.")
@YES
@click.pass_obj
def command(cli: CliContext, volume: str, path: str, recursive: bool, yes: bool) -> int:
    from runner.console import confirm
    from runner.errors import usage
    from runner.transfer.mapping import is_active_on_modal, open_mapping, remote_not_found
    from runner.transfer.progress import count

    mapping = open_mapping(cli, volume)
    path = path.strip("/")
    if not path:
        raise usage("PATH is the whole volume; give a file or folder in it")
    try:
        found = mapping.files.listing(path)
    except FileNotFoundError as error:
        raise remote_not_found(mapping, path) from error
    is_file = [entry.path for entry in found] == [path]
    if not is_file and not recursive:
        raise usage(f"{path} is a folder; pass -r to delete it and its files: `{cli.line} -r`")
    files = [entry for entry in found if entry.kind != "directory"]
    details = [
        f"{volume}/{path}: {count(len(files), 'file')}, {byte_size(sum(f.size for f in files))}"
    ]
    if mapping.has_runs:
        run = path.split("/")[0]
        heartbeat = mapping.files.entry(f"{run}/heartbeat")
        if is_active_on_modal(cli, mapping, run, heartbeat):
            details.append(f"run {run} is active on Modal")
    if not confirm(cli, details, "delete it from Modal permanently", yes):
        return 103
    mapping.files.remove(path, recursive=not is_file)
    cli.info(f"deleted {volume}/{path}")
    return 0
