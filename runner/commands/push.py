"""Send files to a volume in the cloud; what is there and the same is skipped.

\b
PATH is a file, a folder, or for checkpoints a run:
  runner push data ./my_corpus            becomes data/my_corpus
  runner push data ./my_corpus --to texts
  runner push checkpoints warm            the newest checkpoint and the records

It can be interrupted at any moment; the same line goes on from there.
"""

import click

from runner.command_line import completion
from runner.command_line.arguments import VOLUME, transfer_options
from runner.terminal import Environment


@click.command(help=__doc__)
@VOLUME
@click.argument("path", shell_complete=completion.paths)
@click.option("--to", metavar="REMOTE", help="Its path in the volume; by default its own name.")
@transfer_options
@click.pass_obj
def command(
    env: Environment,
    volume: str,
    path: str,
    to: str | None,
    everything: bool,
    dry_run: bool,
    as_json: bool,
    yes: bool,
) -> int:
    from runner.sync.confirm import confirm
    from runner.sync.outcome import outcome_json, say_outcome, show_plan
    from runner.sync.place import local_folder, open_place
    from runner.sync.push import Push, find_source, remote_path

    source = find_source(local_folder(env, volume), volume == "checkpoints", path, env.cwd)
    place = open_place(env, volume, create=not dry_run)
    remote = remote_path(place, source, to)
    push = Push(place, source, remote, everything)
    if dry_run:
        show_plan(env, push.plan, as_json)
        return int(bool(push.plan.refused))
    objections = push.objections()
    if objections and not confirm(env, objections, "push over it all the same", yes):
        return 103
    for note in push.plan.notes:
        env.say(note)
    outcome = push.carry_out(env)
    say_outcome(env, outcome, "pushed", f"to {volume}/{remote} in the cloud")
    if as_json:
        env.json(outcome_json(outcome, volume=volume, path=remote))
    return outcome.status
