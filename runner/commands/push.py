"""Upload files to a volume on Modal or a box; identical files are skipped.

\b
  runner push data ./my_corpus            to data/my_corpus
  runner push data ./my_corpus --dest texts
  runner push checkpoints my_run          the newest checkpoint and the records

PATH is a file, a folder, or for checkpoints a run. After an interruption, run the same
command again to continue.
"""

import click

from runner import completion
from runner.cli_options import REMOTE, VOLUME, transfer_options
from runner.console import CliContext


@click.command(help=__doc__)
@VOLUME
@click.argument("path", shell_complete=completion.paths)
@click.option(
    "--dest", metavar="PATH", help="Path in the volume; by default the name of the file or folder."
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
    dry_run: bool,
    as_json: bool,
    yes: bool,
) -> int:
    from runner.console import confirm
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
    if reasons and not confirm(cli, reasons, "push anyway", yes):
        return 103
    for note in push.plan.notes:
        cli.info(note)
    result = push.execute(cli)
    print_result(cli, result, "pushed", f"to {volume}/{remote} on {mapping.place}")
    if as_json:
        cli.json(result_to_json(result, volume=volume, path=remote))
    return result.status
