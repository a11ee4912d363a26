"""Show how a run stands.

from job.run_record import RunStatus

\b
  runner status warm
"""

import click

from job.run_record import RunStatus
from runner import completion
from runner.cli_options import JSON
from runner.console import CliContext


@click.command(help=__doc__)
@click.argument("run", shell_complete=completion.runs)
@JSON
@click.pass_obj
def command(cli: CliContext, run: str, as_json: bool) -> int:
    from dataclasses import asdict

    from runner.jobs import RESUMABLE_JOBS
    from runner.runs import endings
    from runner.runs.find import find_run
    from runner.runs.table import rows

    found = find_run(cli, run)
    state = found.state
    if as_json:
        cli.json(asdict(state))
        return 0
    for name, value in rows(state):
        cli.write(f"{name:<9} {value}")
    if state.status == RunStatus.LOST or (
        state.status == RunStatus.FAILED and state.reason is None
    ):
        for line in found.source.output(run, 10):
            cli.info(f"  {line}")
    if (cap := endings.limit_message(run, state.unfinished_reason)) and not state.is_copy:
        cli.info(cap)
    elif (
        state.status in (RunStatus.LOST, RunStatus.FAILED, RunStatus.UNFINISHED)
        and state.job in RESUMABLE_JOBS
    ):
        resume = f"runner resume {run}" + (" --on host" if state.is_copy else "")
        cli.info(
            f"`{resume}` goes on from its newest checkpoint; `runner logs {run}` shows its log"
        )
    return 0
