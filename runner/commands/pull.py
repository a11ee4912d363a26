"""Fetch files from a volume in the cloud; what is here and the same is skipped.

\b
PATH is a run or a path in the volume; without it, all of it:
  runner pull checkpoints warm       the newest complete checkpoint and the records
  runner pull checkpoints --all      every checkpoint of every run
  runner pull checkpoints warm --watch
  runner pull data fineweb --into /big/disk

It can be interrupted at any moment; the same line goes on from there.
"""

import click

from runner.command_line import completion
from runner.command_line.arguments import VOLUME, transfer_options
from runner.terminal import Environment


@click.command(help=__doc__)
@VOLUME
@click.argument("path", default="", metavar="[RUN or PATH]", shell_complete=completion.paths)
@click.option(
    "--into", metavar="DIR", help="The folder that stands for the volume; by default volumes/VOLUME."
)
@click.option("--watch", is_flag=True, help="checkpoints: go on until the run ends.")
@click.option(
    "--every",
    type=click.FloatRange(min=0.1),
    default=10.0,
    metavar="SECONDS",
    show_default=True,
    help="--watch: between two looks.",
)
@transfer_options
@click.pass_obj
def command(
    env: Environment,
    volume: str,
    path: str,
    into: str | None,
    everything: bool,
    watch: bool,
    every: float,
    dry_run: bool,
    as_json: bool,
    yes: bool,
) -> int:
    from pathlib import Path

    from runner.errors import RunnerError, usage
    from runner.sync.confirm import confirm
    from runner.sync.outcome import outcome_json, say_outcome, show_plan
    from runner.sync.place import alone, open_place
    from runner.sync.pull import Pull
    from runner.sync.watch import watch_run

    if watch and (volume != "checkpoints" or dry_run):
        raise usage("--watch follows a run: `runner pull checkpoints RUN --watch`")
    folder = env.cwd / Path(into).expanduser() if into else None
    # A watch may begin before the first run of an account, whose launch makes the volume.
    place = open_place(env, volume, folder, create=watch)
    try:
        with alone(place, env.say):
            pull = Pull(place, path, everything)
            if dry_run:
                show_plan(env, pull.plan, as_json)
                return int(bool(pull.plan.refused))
            further = [f"run {run}" for run in pull.further_here()]
            if further and not confirm(env, further, "pull the older state over it", yes):
                return 103
            for note in pull.plan.notes:
                env.say(note)
            if not watch:
                outcome = pull.carry_out(env)
                say_outcome(env, outcome, "pulled", f"into {place.root}")
    except RunnerError as error:
        if not watch or error.exit_code != 102:
            raise  # a run that was started just now may not have its folder yet
    if watch:
        outcome = watch_run(env, place, path, everything, every)
    if as_json:
        env.json(outcome_json(outcome, volume=volume, folder=str(place.root)))
    return outcome.status
