"""One run on two sides: this machine and a target with volumes of its own.

Only a run that was on a remote target is looked up there, as its files on this machine tell. A new
run needs no network to start.
"""

from __future__ import annotations

from pathlib import Path

from job.run_record import RunRecord, read_record
from runner.console import CliContext
from runner.errors import NoSuchRun, RunnerError, not_found
from runner.jobs import COMMAND
from runner.plan import RemoteRunState
from runner.project import volumes
from runner.runs import attempts
from runner.runs.store import is_active_locally, newest_step, read_launch, record_of, step_of
from runner.target import Target, remote_targets


def remote_state(cli: CliContext, checkout: Path, folder: Path) -> RemoteRunState | None:
    """Return the state of the run in ``folder`` on the remote target that it was on; None if it was
    on none.

    Warns and returns None if that target does not answer.
    """
    record, journals = read_record(folder), volumes(checkout, cli.environ).cache / ".sync"
    for target in remote_targets(cli, checkout):
        if target.name in cli.unreachable_targets or not _was_on(target, folder, record, journals):
            continue
        try:
            return _ask(target, folder.name, record)
        except (RunnerError, OSError) as error:
            cli.warn(
                f"could not ask {target.name} whether run '{folder.name}' ran there since: {error}"
            )
            cli.unreachable_targets.add(target.name)
    return None


def _ask(target: Target, run: str, local: RunRecord | None) -> RemoteRunState | None:
    target.check_configured()
    state, files = target.state(run), target.files("checkpoints")
    if state is not None and state.alive:
        return RemoteRunState(target.name, is_remote=True, is_active=True)
    remote = record_of(files, run)
    if remote is None or (local is not None and local.created != remote.created):
        return None  # another run of that name
    return RemoteRunState(
        target.name,
        is_remote=True,
        step=step_of(files, run),
        ran_since=_ran_since(remote, local),
    )


def local_state(
    cli: CliContext, checkout: Path, run: str, remote: RunRecord | None
) -> RemoteRunState | None:
    """Return the state on this machine of the run with the record ``remote``.

    None if it is another run.
    """
    folder = volumes(checkout, cli.environ).run(run)
    record = read_record(folder)
    if record is None or remote is None or record.created != remote.created:
        return None
    target = str(record.attempts[-1].launch.get("target") or "host") if record.attempts else "host"
    is_pulled = target in {other.name for other in remote_targets(cli, checkout)}
    is_active = is_active_locally(folder) and not is_pulled
    return RemoteRunState(
        target,
        is_remote=False,
        is_active=is_active,
        step=newest_step(folder),
        ran_since=_ran_since(record, remote),
    )


def locate_missing_run(
    cli: CliContext, checkout: Path, target: Target, job: str, missing: NoSuchRun
) -> RunnerError:
    """Return the error for a run that ``target`` lacks, naming the target that has it, if any."""
    run = missing.run
    if target.has_remote_volumes:
        if read_record(volumes(checkout, cli.environ).run(run)) is None:
            return missing
        return not_found(
            f"run '{run}' is on this machine, not on {target.name}: run "
            f"`runner host {job} --name {run}`, or copy it first: `runner push checkpoints {run}`"
        )
    for remote in remote_targets(cli, checkout):
        try:
            if not remote.is_configured() or (
                remote.state(run) is None and record_of(remote.files("checkpoints"), run) is None
            ):
                continue
        except (RunnerError, OSError) as error:
            cli.warn(f"could not ask {remote.name} for run '{run}': {error}")
            continue
        return not_found(
            f"run '{run}' is on {remote.name}, not on {target.name}: run "
            f"`runner {remote.name} {job} --name {run}`, "
            f"or copy it first: `runner pull checkpoints {run}`"
        )
    return missing


def _ran_since(there: RunRecord, here: RunRecord | None) -> bool:
    """Return True if a command was started there after its last start here."""
    last = max((attempt.started for attempt in here.attempts), default=0.0) if here else 0.0
    return there.job == COMMAND.name and any(attempt.started > last for attempt in there.attempts)


def _was_on(target: Target, folder: Path, record: RunRecord | None, journals: Path) -> bool:
    """Return True if the run's local files show a launch on, or a push to, the target."""
    launch = read_launch(folder)
    if (folder / attempts.NAME).exists() or (launch is not None and launch.target == target.name):
        return True
    if record is None:
        return False
    if any(attempt.launch.get("target") == target.name for attempt in record.attempts):
        return True
    noted = f'"{folder.name}/run.json"'.encode()
    return any(noted in journal.read_bytes() for journal in journals.glob("*.jsonl"))
