"""Stop a run, or remove it from the queue. A training run saves a checkpoint first.

\b
  runner stop               the newest run
  runner stop my_run
  runner stop my_run --force
"""

from pathlib import PurePosixPath

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
    from job.run_record import RunStatus
    from runner.errors import RunnerError
    from runner.jobs import RESUMABLE_JOBS
    from runner.runs.find import select_run
    from runner.runs.store import LAUNCH_FILES, listing

    resolved = select_run(cli, run)
    state = resolved.state
    resolved.check_reachable()
    if not state.alive:
        cli.info(f"run '{state.run}' is not running (status: {state.status})")
        return 0
    was_queued = state.status == RunStatus.QUEUED
    saves = (
        "; it saves a checkpoint first"
        if state.job == "train" and not (force or was_queued)
        else ""
    )
    cli.info(f"stopping run '{state.run}' on {resolved.target.name}{saves}")
    if not resolved.target.stop(state.run, force):
        raise RunnerError(
            f"run '{state.run}' was not started by the runner; press Ctrl-C in its terminal"
        )
    if was_queued and ((now := resolved.target.state(state.run)) is None or not now.attempts):
        entries = listing(resolved.target.files("checkpoints"), state.run)
        if entries and {PurePosixPath(entry.path).name for entry in entries} <= LAUNCH_FILES:
            resolved.target.remove(state.run)  # the launch created the folder
        cli.info("removed from the queue")
        return 0
    resume = f"; `runner resume {state.run}` resumes it" if state.job in RESUMABLE_JOBS else ""
    cli.info(f"stopped{resume}")
    return 0
