"""List the caches of jobs by kind, with their sizes, or delete them.

\b
  runner cache ls                          on this machine
  runner cache ls --target cloud           on Modal's volume
  runner cache clear inductor triton       these two kinds
  runner cache clear --target cloud -y     all of them

A job that needs a deleted cache compiles or downloads it again.
"""

import click

from job.format import byte_size
from runner.cli_options import JSON, YES
from runner.console import CliContext


@click.command(help=__doc__)
@click.argument("action", type=click.Choice(["ls", "clear"]), default="ls")
@click.argument("kinds", nargs=-1, metavar="[KIND ...]")
@click.option(
    "--target",
    type=click.Choice(["host", "local", "cloud"]),
    default="host",
    show_default=True,
    help="Target whose caches to list or delete.",
)
@JSON
@YES
@click.pass_obj
def command(
    cli: CliContext, action: str, kinds: tuple[str, ...], target: str, as_json: bool, yes: bool
) -> int:
    from dataclasses import asdict

    from runner.caches import active_runs, open_caches, select_caches
    from runner.console import confirm
    from runner.project import find_checkout
    from runner.transfer.progress import count

    checkout = find_checkout(cli.cwd)
    volume = open_caches(cli, checkout, target)
    found = select_caches(volume.caches(), kinds)
    lines = [
        f"{cache.kind:<12} {byte_size(cache.bytes):>10}  {count(cache.files, 'file'):<12}  "
        f"{cache.description}".rstrip()
        for cache in found
    ]
    if action == "clear" and found:
        active = [f"run {run} is active" for run in active_runs(cli, checkout, target)]
        if not confirm(cli, [*lines, *active], "delete them", yes):
            return 103
        for cache in found:
            volume.clear(cache.kind)
    if as_json:
        cli.json([asdict(cache) for cache in found])
    elif action == "clear":
        total = byte_size(sum(cache.bytes for cache in found))
        cli.info(
            f"deleted {', '.join(cache.kind for cache in found)}: {total}"
            if found
            else "no cache to delete"
        )
    else:
        for line in lines:
            cli.write(line)
        if not found:
            cli.info("no caches yet; jobs create them")
    return 0
