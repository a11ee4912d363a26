"""Stop a run. A training run saves a checkpoint first.

\b
  runner stop               the newest run
  runner stop warm
  runner stop warm --force
"""

import click

from runner.cli_options import RUN
from runner.console import CliContext


@click.command(help=__doc__)
@RUN
@click.option(
    "--force", is_flag=True, help="Kill the run; progress since its last checkpoint is lost."
)
@click.pass_obj
def command(cli: CliContext, run: str | None, force: bool) -> int:
    from runner.errors import RunnerError
    from runner.jobs import RESUMABLE_JOBS
    from runner.runs.find import select_run

    found = select_run(cli, run)
    state = found.state
    found.check_reachable()
    if not state.alive:
        cli.info(f"run '{state.run}' is not running; it is {state.status}")
        return 0
    saves = "; it saves a checkpoint first" if state.job == "train" and not force else ""
    cli.info(f"stopping run '{state.run}' on {found.target.name}{saves}")
    if not found.target.stop(state.run, force):
        raise RunnerError(
            f"run '{state.run}' was not started by the runner; press Ctrl-C in its terminal"
        )
    resume = f"; `runner resume {state.run}` resumes it" if state.job in RESUMABLE_JOBS else ""
    cli.info(f"stopped{resume}")
    return 0
