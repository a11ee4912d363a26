"""List the runs, newest first.

\b
  runner runs
  runner runs --tag ablation --status failed
  runner runs --recipe shakespeare_char --json

A run is `lost` if it ended without a record of its end. Like an `unfinished` run,
it resumes from its newest checkpoint with `runner resume RUN`.
"""

import click

from job.run_record import RunStatus
from runner.cli_options import JSON, Choice
from runner.console import CliContext


@click.command(help=__doc__)
@click.option(
    "--tag", "tags", multiple=True, metavar="NAME", help="Runs with this tag. Repeatable."
)
@click.option(
    "--status",
    "statuses",
    type=Choice([status.value for status in RunStatus]),
    multiple=True,
    help="Runs with this status. Repeatable: one of them.",
)
@click.option("--recipe", metavar="NAME", help="Runs of this recipe.")
@JSON
@click.pass_obj
def command(
    cli: CliContext,
    tags: tuple[str, ...],
    statuses: tuple[str, ...],
    recipe: str | None,
    as_json: bool,
) -> int:
    from dataclasses import asdict

    from runner.runs.find import every_run
    from runner.runs.store import NO_RUNS
    from runner.runs.table import show_runs

    every = [run.state for run in every_run(cli)]
    states = [
        state
        for state in every
        if {*tags} <= {*state.tags}
        and (not statuses or state.status in statuses)
        and recipe in (None, state.recipe)
    ]
    if as_json:
        cli.json([asdict(state) for state in states])
    elif states:
        show_runs(states, cli)
    elif every:
        cli.info(f"none of the {len(every)} runs matches")
    else:
        cli.info(NO_RUNS)
    return 0
