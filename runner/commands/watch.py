"""Show a run while it lives: curves, speed, cost, what it writes.

Without a name the newest run. q or Ctrl-C leaves it alone; the exit status is
the run's where it ended, and 130 where you left. Off a terminal it prints a
line every 10 seconds.

\b
  runner watch
  runner watch warm
"""

import click

from runner.command_line import completion
from runner.command_line.arguments import JSON
from runner.terminal import Environment


@click.command(help=__doc__)
@click.argument("run", required=False, shell_complete=completion.runs)
@click.option("--every", type=click.FloatRange(min=0.1), metavar="SECONDS", help="Between two looks at it.")
@JSON
@click.pass_obj
def command(env: Environment, run: str | None, every: float | None, as_json: bool) -> int:
    from runner.runs.find import find_run, newest_run
    from runner.screen.watch import watch

    return watch(env, find_run(env, run) if run else newest_run(env), every, as_json)
