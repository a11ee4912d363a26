"""List the runs, newest first.

A run is `dead` when it ended without a word; like an `unfinished` one,
`runner resume RUN` takes it up from its newest checkpoint.

\b
  runner runs
  runner runs --json
"""

import click

from runner.command_line.arguments import JSON
from runner.terminal import Environment


@click.command(help=__doc__)
@JSON
@click.pass_obj
def command(env: Environment, as_json: bool) -> int:
    from dataclasses import asdict

    from runner.runs.find import every_run
    from runner.runs.table import show_runs

    states = [found.state for found in every_run(env)]
    if as_json:
        env.json([asdict(state) for state in states])
    elif states:
        show_runs(states, env)
    else:
        env.say("no runs yet; `runner local` or `runner host` trains the first one")
    return 0
