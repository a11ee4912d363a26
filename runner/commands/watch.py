"""Show a run while it lives: curves, speed, cost, what it writes.

Without a name the newest run. q or Ctrl-C leaves it alone; the exit status is
the run's where it ended, and 130 where you left. Off a terminal it prints a
line every 10 seconds.

\b
  runner watch
  runner watch warm
"""

import click

from runner import completion
from runner.cli_options import JSON
from runner.console import CliContext


@click.command(help=__doc__)
@click.argument("run", required=False, shell_complete=completion.runs)
@click.option(
    "--every", type=click.FloatRange(min=0.1), metavar="SECONDS", help="Between two looks at it."
)
@JSON
@click.pass_obj
def command(cli: CliContext, run: str | None, every: float | None, as_json: bool) -> int:
    from runner.runs.find import find_run, newest_run
    from runner.views.watch import watch

    return watch(cli, find_run(cli, run) if run else newest_run(cli), every, as_json)
