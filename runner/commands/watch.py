"""Watch a run live: loss curves, throughput, cost, samples.

\b
  runner watch              the newest run
  runner watch my_run

q or Ctrl-C leaves the run running. The exit status is that of the run, or 130 if you
leave before it ends. Without a terminal, the command prints a line every 10 seconds.
"""

import click

from runner.cli_options import JSON, RUN, Number
from runner.console import CliContext


@click.command(help=__doc__)
@RUN
@click.option(
    "--interval",
    type=Number(0.1),
    metavar="SECONDS",
    help="Refresh interval in seconds.",
)
@JSON
@click.pass_obj
def command(cli: CliContext, run: str | None, interval: float | None, as_json: bool) -> int:
    from runner.runs.find import select_run
    from runner.views.watch import watch

    return watch(cli, select_run(cli, run), interval, as_json)
