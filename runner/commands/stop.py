"""Stop a run; a training writes a checkpoint first.

\b
  runner stop warm
"""

import click

from runner import completion
from runner.console import CliContext


@click.command(help=__doc__)
@click.argument("run", shell_complete=completion.runs)
@click.option("--now", is_flag=True, help="Kill it; what it did since its last checkpoint is lost.")
@click.pass_obj
def command(cli: CliContext, run: str, now: bool) -> int:
    from runner.errors import RunnerError
    from runner.jobs import RESUMABLE_JOBS
    from runner.runs.find import find_run

    found = find_run(cli, run)
    found.check_reachable()
    if not found.state.alive:
        cli.info(f"run '{run}' is not at work; it is {found.state.status}")
        return 0
    saves = "; it writes a checkpoint first" if found.state.job == "train" and not now else ""
    cli.info(f"stopping run '{run}' on {found.target.name}{saves}")
    if not found.target.stop(run, force=now):
        raise RunnerError(
            f"run '{run}' was not started by the runner; end it where it was started (Ctrl-C there)"
        )
    again = f"; `runner resume {run}` goes on" if found.state.job in RESUMABLE_JOBS else ""
    cli.info(f"stopped{again}")
    return 0
