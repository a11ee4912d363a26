"""What the host and the container both look at before a plan: the run's folder, the dataset, git, keys."""

from __future__ import annotations

from pathlib import Path

from job.paths import VolumePaths
from job.pretrained import weights_of
from job.run_record import RunStatus, heartbeat_age, read_record
from runner.console import CliContext
from runner.launch.parse import settings_begun_with
from runner.plan import TargetState
from runner.planning.packaging import setup_lines
from runner.project import git_state, secret_names
from runner.request import Request
from runner.runs.divergence import in_cloud
from runner.runs.store import is_fresh, is_ready, newest_step
from runner.target import Target


def inspect_local(
    target: Target, cli: CliContext, checkout: Path, here: VolumePaths, request: Request
) -> TargetState:
    """The facts that are read from this machine's disk; the target replaces what it knows better."""
    command = request.command
    of_run = request.job.writes_run or request.job.reads_run
    record = read_record(here.run(request.run)) if of_run else None
    data = request.settings.data.dataset if request.settings else None
    weights = weights_of(request.settings)
    writes = request.job.writes_run or request.detach
    return TargetState(
        target=target.name,
        checkout=str(checkout),
        workspace=str(checkout),
        volumes=(),
        busy=busy_in(target, here.run(request.run)) if writes else None,
        step=newest_step(here.run(request.run)),
        dataset_ready=is_ready(target.files("data"), data) if data else None,
        weights_ready=(here.cache / weights.weights).is_file() if weights else None,
        secrets=secret_names(cli.environ, checkout),
        git=tuple((git_state(command.folder if command else checkout) or {}).items()),
        folder=str(command.folder) if command else "",
        setup=setup_lines(command) if command else (),
        attempts=len(record.attempts) if record else 0,
        finished=record is not None and record.status == RunStatus.FINISHED,
        record=record,
        begun_with=settings_begun_with(target.files("checkpoints"), request),
        other=in_cloud(cli, checkout, here.run(request.run)) if request.job.writes_run else None,
    )


def busy_in(target: Target, folder: Path) -> str | None:
    """What is at work in the run's folder. Of another target only the heartbeat is looked at: asking it could
    need an engine or a network that a start here does not."""
    state = target.state(folder.name)
    if state is not None and state.alive:
        return f"{state.status} on {state.target}"
    record = read_record(folder)
    if record is None or record.status != RunStatus.RUNNING or not is_fresh(heartbeat_age(folder)):
        return None
    other = record.attempts[-1].launch.get("target") if record.attempts else None
    # The heartbeat here is none of the cloud's: ``in_cloud`` asks there.
    return None if other in (None, target.name, "cloud") else f"running on {other}"
