"""List the runs, newest first.

\b
  runner runs
  runner runs --json

A run is `lost` if it ended without a record of its end. Like an `unfinished` run,
it resumes from its newest checkpoint with `runner resume RUN`.
"""

import click

from runner.cli_options import JSON
from runner.console import CliContext


@click.command(help=__doc__)
@JSON
@click.pass_obj
def command(cli: CliContext, as_json: bool) -> int:
    from dataclasses import asdict

    from runner.runs.find import every_run
    from runner.runs.table import show_runs

    states = [found.state for found in every_run(cli)]
    if as_json:
        cli.json([asdict(state) for state in states])
    elif states:
        show_runs(states, cli)
    else:
        cli.info("no runs yet; `runner local` or `runner host` trains the first one")
    return 0
