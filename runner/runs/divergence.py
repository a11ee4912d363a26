"""What the other side has of a run that is to be started here or in the cloud.

The cloud is asked for a run alone that was in the cloud, by what lies here: a start of another needs no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from job.run_record import RunRecord, RunStatus, heartbeat_age, read_record
from runner.console import CliContext
from runner.errors import NoSuchRun, RunnerError, not_found
from runner.jobs import COMMAND, JOBS
from runner.plan import RemoteRunState
from runner.project import volumes
from runner.runs import attempts
from runner.runs.store import is_fresh, newest_step, read_launch, record_of, step_of
from runner.target import Target, all_targets
from runner.targets.modal.account import NO_TOKEN, is_set_up


def in_cloud(cli: CliContext, checkout: Path, folder: Path) -> RemoteRunState | None:
    """What the cloud has of the run in ``folder``; None where it has nothing. Where it can't be asked, that is said."""
    record = read_record(folder)
    if not _was_in_cloud(cli, checkout, folder, record):
        return None
    cloud = _cloud(cli, checkout)
    if cloud is None or cloud.name in cli.unreachable_targets:
        return None
    try:
        if not is_set_up(cli.environ):
            raise RunnerError(NO_TOKEN)
        state, files = cloud.state(folder.name), cloud.files("checkpoints")
        if state is not None and state.alive:
            return RemoteRunState("cloud", alive=True)
        there = record_of(files, folder.name)
        if there is None or (record is not None and record.created != there.created):
            return None  # another run of that name
        return RemoteRunState(
            "cloud", step=step_of(files, folder.name), went_on=_went_on(there, record)
        )
    except (RunnerError, OSError) as error:
        cli.warn(f"the cloud could not be asked whether run '{folder.name}' went on there: {error}")
        cli.unreachable_targets.add(cloud.name)
        return None


def on_this_machine(
    cli: CliContext, checkout: Path, run: str, there: RunRecord | None
) -> RemoteRunState | None:
    """What this machine has of the run whose record in the cloud is ``there``; None where that is another run's."""
    folder = volumes(checkout, cli.environ).run(run)
    record = read_record(folder)
    if record is None or there is None or record.created != there.created:
        return None
    target = str(record.attempts[-1].launch.get("target") or "host") if record.attempts else "host"
    beats = record.status == RunStatus.RUNNING and is_fresh(heartbeat_age(folder))
    return RemoteRunState(
        target, beats and target != "cloud", newest_step(folder), _went_on(record, there)
    )


def look_on_other_side(
    cli: CliContext, checkout: Path, target: str, words: Sequence[str], missing: NoSuchRun
) -> RunnerError:
    """What to say of a run that ``target`` lacks: that it is on the other side, if it is; ``words`` name the job."""
    run, job = missing.run, next((word for word in words if word in JOBS), "sample")
    if target == "cloud":
        if read_record(volumes(checkout, cli.environ).run(run)) is None:
            return missing
        return not_found(
            f"run '{run}' is on this machine: `runner host {job} --name {run}`, or `runner push checkpoints {run}` first"
        )
    cloud = _cloud(cli, checkout)
    try:
        if cloud is None or not is_set_up(cli.environ):
            return missing
        if cloud.state(run) is None and record_of(cloud.files("checkpoints"), run) is None:
            return missing
    except (RunnerError, OSError) as error:
        cli.warn(f"the cloud could not be asked for it: {error}")
        return missing
    return not_found(
        f"run '{run}' is in the cloud: `runner cloud {job} --name {run}`, or `runner pull checkpoints {run}` first"
    )


def _went_on(there: RunRecord, here: RunRecord | None) -> bool:
    begun = (
        max((attempt.started for attempt in here.attempts), default=0.0)
        if here is not None
        else 0.0
    )
    return there.job == COMMAND.name and any(attempt.started > begun for attempt in there.attempts)


def _cloud(cli: CliContext, checkout: Path) -> Target | None:
    return next((target for target in all_targets(cli, checkout) if target.name == "cloud"), None)


def _was_in_cloud(cli: CliContext, checkout: Path, folder: Path, record: RunRecord | None) -> bool:
    launch = read_launch(folder)
    if (folder / attempts.NAME).exists() or (launch is not None and launch.target == "cloud"):
        return True
    if record is None:
        return False
    return any(a.launch.get("target") == "cloud" for a in record.attempts) or _was_pushed(
        volumes(checkout, cli.environ).cache / ".sync", folder.name
    )


def _was_pushed(journals: Path, run: str) -> bool:
    """Whether a transfer noted the run's record."""
    noted = f'"{run}/run.json"'.encode()
    return any(noted in journal.read_bytes() for journal in journals.glob("*.jsonl"))
