"""Show the caches of jobs by kind, with their sizes, or empty them.

\b
  runner cache ls                          on this machine
  runner cache ls --target cloud           on Modal's volume
  runner cache clear inductor triton       these two
  runner cache clear --target cloud -y     all of them

They are made again when a job needs them: compiled again, downloaded again.
"""

import click

from job.quantities import byte_size
from runner.command_line.arguments import JSON, YES
from runner.terminal import Environment


@click.command(help=__doc__)
@click.argument("action", type=click.Choice(["ls", "clear"]), default="ls")
@click.argument("kinds", nargs=-1, metavar="[KIND ...]")
@click.option(
    "--target",
    type=click.Choice(["host", "local", "cloud"]),
    default="host",
    show_default=True,
    help="Whose.",
)
@JSON
@YES
@click.pass_obj
def command(
    env: Environment, action: str, kinds: tuple[str, ...], target: str, as_json: bool, yes: bool
) -> int:
    from dataclasses import asdict

    from runner.caches import choose, open_caches
    from runner.checkout import find_checkout
    from runner.sync.confirm import confirm
    from runner.sync.progress import count

    volume = open_caches(env, find_checkout(env.cwd), target)
    found = choose(volume.caches(), kinds)
    lines = [
        f"{cache.kind:<12} {byte_size(cache.bytes):>10}  {count(cache.files, 'file'):<12}  {cache.about}".rstrip()
        for cache in found
    ]
    if action == "clear" and found:
        if not confirm(env, lines, "clear them", yes):
            return 103
        for cache in found:
            volume.clear(cache.kind)
    if as_json:
        env.json([asdict(cache) for cache in found])
    elif action == "clear":
        total = byte_size(sum(cache.bytes for cache in found))
        env.say(
            f"cleared {', '.join(cache.kind for cache in found)}: {total}" if found else "nothing to clear"
        )
    else:
        for line in lines:
            env.write(line)
        if not found:
            env.say("no cache yet; jobs fill it")
    return 0
