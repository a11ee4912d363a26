"""What the other side has of a run that is to be started here or in the cloud.

The cloud is asked for a run alone that was in the cloud, by what lies here: a start of another needs no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from job.runs import RunRecord, heartbeat_age, read_record
from runner.checkout import volumes
from runner.cloud import ledger
from runner.cloud.account import NO_TOKEN, is_set_up
from runner.errors import NoSuchRun, RunnerError, not_found
from runner.jobs import COMMAND, JOBS
from runner.plans.other_side import OtherSide
from runner.runs.folders import newest_step
from runner.runs.heartbeat import is_fresh
from runner.runs.launch_record import read_launch
from runner.runs.on_volumes import record_of, step_of
from runner.targets import all_targets
from runner.targets.protocol import Target
from runner.terminal import Environment


def in_cloud(env: Environment, checkout: Path, folder: Path) -> OtherSide | None:
    """What the cloud has of the run in ``folder``; None where it has nothing. Where it can't be asked, that is said."""
    record = read_record(folder)
    if not _was_in_cloud(env, checkout, folder, record):
        return None
    cloud = _cloud(env, checkout)
    if cloud is None or cloud.name in env.left_out:
        return None
    try:
        if not is_set_up(env.environ):
            raise RunnerError(NO_TOKEN)
        state, files = cloud.state(folder.name), cloud.files("checkpoints")
        if state is not None and state.alive:
            return OtherSide("cloud", alive=True)
        there = record_of(files, folder.name)
        if there is None or (record is not None and record.created != there.created):
            return None  # another run of that name
        return OtherSide("cloud", step=step_of(files, folder.name), went_on=_went_on(there, record))
    except (RunnerError, OSError) as error:
        env.warn(f"the cloud could not be asked whether run '{folder.name}' went on there: {error}")
        env.left_out.add(cloud.name)
        return None


def on_this_machine(env: Environment, checkout: Path, run: str, there: RunRecord | None) -> OtherSide | None:
    """What this machine has of the run whose record in the cloud is ``there``; None where that is another run's."""
    folder = volumes(checkout, env.environ).run(run)
    record = read_record(folder)
    if record is None or there is None or record.created != there.created:
        return None
    target = str(record.attempts[-1].launch.get("target") or "host") if record.attempts else "host"
    beats = record.status == "running" and is_fresh(heartbeat_age(folder))
    return OtherSide(target, beats and target != "cloud", newest_step(folder), _went_on(record, there))


def look_on_other_side(
    env: Environment, checkout: Path, target: str, words: Sequence[str], missing: NoSuchRun
) -> RunnerError:
    """What to say of a run that ``target`` lacks: that it is on the other side, if it is; ``words`` name the job."""
    run, job = missing.run, next((word for word in words if word in JOBS), "sample")
    if target == "cloud":
        if read_record(volumes(checkout, env.environ).run(run)) is None:
            return missing
        return not_found(
            f"run '{run}' is on this machine: `runner host {job} --name {run}`, or `runner push checkpoints {run}` first"
        )
    cloud = _cloud(env, checkout)
    try:
        if cloud is None or not is_set_up(env.environ):
            return missing
        if cloud.state(run) is None and record_of(cloud.files("checkpoints"), run) is None:
            return missing
    except (RunnerError, OSError) as error:
        env.warn(f"the cloud could not be asked for it: {error}")
        return missing
    return not_found(
        f"run '{run}' is in the cloud: `runner cloud {job} --name {run}`, or `runner pull checkpoints {run}` first"
    )


def _went_on(there: RunRecord, here: RunRecord | None) -> bool:
    begun = max((attempt.started for attempt in here.attempts), default=0.0) if here is not None else 0.0
    return there.job == COMMAND.name and any(attempt.started > begun for attempt in there.attempts)


def _cloud(env: Environment, checkout: Path) -> Target | None:
    return next((target for target in all_targets(env, checkout) if target.name == "cloud"), None)


def _was_in_cloud(env: Environment, checkout: Path, folder: Path, record: RunRecord | None) -> bool:
    launch = read_launch(folder)
    if (folder / ledger.NAME).exists() or (launch is not None and launch.target == "cloud"):
        return True
    if record is None:
        return False
    return any(a.launch.get("target") == "cloud" for a in record.attempts) or _was_pushed(
        volumes(checkout, env.environ).cache / ".sync", folder.name
    )


def _was_pushed(journals: Path, run: str) -> bool:
    """Whether a transfer noted the run's record."""
    noted = f'"{run}/run.json"'.encode()
    return any(noted in journal.read_bytes() for journal in journals.glob("*.jsonl"))
