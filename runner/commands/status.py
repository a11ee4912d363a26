"""Show the status of a run: progress, loss, attempts, cost.

\b
  runner status             the newest run
  runner status my_run
"""

import click

from runner.cli_options import JSON, RUN
from runner.console import CliContext


@click.command(help=__doc__)
@RUN
@JSON
@click.pass_obj
def command(cli: CliContext, run: str | None, as_json: bool) -> int:
    from dataclasses import asdict

    from job.run_record import RunStatus
    from runner.jobs import RESUMABLE_JOBS
    from runner.runs.find import select_run
    from runner.runs.table import limit_message, resume_message, rows

    resolved = select_run(cli, run)
    state = resolved.state
    if as_json:
        cli.json(asdict(state))
        return 0
    for name, value in rows(state):
        cli.write(f"{name:<9} {value}")
    if state.status == RunStatus.LOST or (
        state.status == RunStatus.FAILED and state.reason is None
    ):
        for line in resolved.source.output(state.run, 10):
            cli.info(f"  {line}")
    if (limit := limit_message(state.run, state.unfinished_reason)) and not state.is_copy:
        cli.info(limit)
    elif (
        state.status in (RunStatus.LOST, RunStatus.FAILED, RunStatus.UNFINISHED)
        and state.job in RESUMABLE_JOBS
    ):
        options = " --target host" if state.is_copy else ""
        cli.info(resume_message(state.run, state.job, options))
    return 0
