"""Find runs by name on any target, and compare a run's copies on this machine and a remote target.

A run is looked up on a remote target only if its files on this machine show that it was there: a
new run needs no network to start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from job.files import read_file
from job.run_record import RunRecord, RunStatus, is_run_name, read_record
from job.step_folders import discard
from job.typed_json import read_object
from runner.console import CliContext
from runner.errors import NoSuchRun, RunnerError, did_you_mean, not_found, usage
from runner.jobs import COMMAND
from runner.plan import RemoteRunState, is_active_elsewhere
from runner.project import find_checkout, volumes
from runner.runs import attempts
from runner.runs.store import NO_RUNS, SWEEP_RECORD, is_active_locally, newest_step, read_launch
from runner.runs.volume import record_of, step_of
from runner.target import RunInfo, RunSource, Target, all_targets, remote_targets

MAX_NAMES = 8  # in an error


@dataclass(frozen=True)
class ResolvedRun:
    """A run, the target that it was last on, and ``source``, which reads it.

    ``source`` is the target itself, or the pulled copies if the target does not answer for the run.
    """

    state: RunInfo
    target: Target
    source: RunSource

    def remove(self, folder: str = "") -> None:
        """Delete the run, or a ``folder`` in it, from the volume that was read."""
        path = f"{self.state.run}/{folder}".rstrip("/")
        if self.state.is_copy:
            discard(Path(self.state.folder).parent / path)
        else:
            self.target.remove(path)

    def check_reachable(self) -> None:
        """Raise RunnerError if only a pulled copy of the run is known."""
        if self.state.is_copy:
            run, target = self.state.run, self.target.name
            raise RunnerError(
                f"target {target} does not answer for run '{run}', and this is only the copy "
                f"that was pulled; to resume it on this machine: "
                f"`runner resume {run} --target host`"
            )


def every_run(cli: CliContext) -> list[ResolvedRun]:
    """Return the runs of all targets, newest first.

    Unreachable targets are skipped with a warning.
    """
    runs, unreachable = _runs_of_targets(cli)
    known = {run.state.run for run in runs}
    copies = [copy for copy in _copies(cli) if copy.state.run not in known]
    for target, error in unreachable:
        # Finished copies stay as they are, so an account that is not set up changes nothing about
        # them.
        if (
            target.is_configured()
            or not copies
            or any(copy.state.status != RunStatus.FINISHED for copy in copies)
        ):
            _warn_unreachable(cli, target, error)
    return sorted(runs + copies, key=lambda run: (-(run.state.started or 0.0), run.state.run))


def find_run(cli: CliContext, name: str) -> ResolvedRun:
    """Return the run; if several targets have one of that name, the active or newest one.

    Raises RunnerError, exit status 102, if no target has it.
    """
    if not name.strip():  # never the newest run, which might then be stopped
        raise usage("the run's name is empty; give a name (is its variable set?) or remove it")
    candidates, unreachable = [], []
    for target in _targets(cli):
        try:
            state = target.state(name)
        except RunnerError as error:
            unreachable.append((target, error.message))
            continue
        if state is not None:
            candidates.append(ResolvedRun(state, target, target))
    if candidates:
        newest = max(candidates, key=lambda run: (run.state.alive, run.state.started or 0.0))
        if not newest.state.alive and newest.state.status != RunStatus.FINISHED:
            _warn_all(cli, unreachable)  # it may have been resumed there
        return newest
    for target in _targets(cli):
        source = target.mirror()
        copy = source.state(name) if source is not None else None
        if source is not None and copy is not None:
            if copy.status != RunStatus.FINISHED:
                _warn_all(cli, unreachable or _not_configured(target))
            return ResolvedRun(copy, target, source)
    raise not_found(_no_such_run(cli, name, unreachable))


def match_names(cli: CliContext, patterns: Sequence[str]) -> list[str]:
    """Expand patterns such as ``seed*`` to the names of runs, without duplicates.

    Raises RunnerError, exit status 102, for a pattern that matches nothing.
    """
    if not any(map(_is_pattern, patterns)):
        return list(patterns)
    known = sorted({run.state.run for run in every_run(cli)})
    names: list[str] = []
    for word in patterns:
        if not _is_pattern(word):
            names.append(word)
            continue
        matching = [name for name in known if fnmatchcase(name, word)]
        if not matching:
            raise not_found(f"no run matches '{word}'; {_list_of(known)}")
        names += [name for name in matching if name not in names and name not in patterns]
    return names


def select_run(cli: CliContext, name: str | None) -> ResolvedRun:
    """Return the run ``name``; without a name the newest run, naming it on stderr.

    Raises RunnerError, exit status 102, if there is none.
    """
    if name is not None:
        return find_run(cli, name)
    runs = every_run(cli)
    if not runs:
        raise not_found(NO_RUNS)
    cli.info(f"run '{runs[0].state.run}' (the newest)")
    return runs[0]


def refuse_if_active_elsewhere(resolved: ResolvedRun, target: Target) -> None:
    """Raise RunnerError if the run is active on a target other than ``target``."""
    if not resolved.state.alive or resolved.target is target:
        return
    command = (
        "pull"
        if resolved.target.has_remote_volumes
        else "push"
        if target.has_remote_volumes
        else ""
    )
    run = resolved.state.run
    copy = f"runner {command} checkpoints {run}" if command else ""
    raise is_active_elsewhere(run, resolved.target.name, copy)


def _targets(cli: CliContext) -> list[Target]:
    return all_targets(cli, find_checkout(cli.cwd))


def _runs_of_targets(cli: CliContext) -> tuple[list[ResolvedRun], list[tuple[Target, str]]]:
    runs: list[ResolvedRun] = []
    unreachable: list[tuple[Target, str]] = []
    for target in _targets(cli):
        try:
            runs += [ResolvedRun(state, target, target) for state in target.runs()]
        except RunnerError as error:
            unreachable.append((target, error.message))
    return runs, unreachable


def _copies(cli: CliContext) -> list[ResolvedRun]:
    return [
        ResolvedRun(state, target, source)
        for target in _targets(cli)
        if (source := target.mirror()) is not None
        for state in source.runs()
    ]


def _no_such_run(cli: CliContext, name: str, unreachable: list[tuple[Target, str]]) -> str:
    others, also_unreachable = _runs_of_targets(cli)
    _warn_all(cli, [*also_unreachable, *unreachable])
    if sweep := _describe_sweep(cli, name):
        return sweep
    names = {run.state.run for run in [*others, *_copies(cli)]}
    hint = did_you_mean(name, names) or "; `runner runs` lists them"
    return f"no run '{name}'{hint if names else f' ({NO_RUNS})'}"


def _describe_sweep(cli: CliContext, name: str) -> str:
    """Return the error for the name of a sweep on this machine, from its ``sweep.json``.

    '' for any other.
    """
    folder = sweep_folder(cli, name)
    try:
        sweep = read_object(read_file(folder / SWEEP_RECORD)) if folder else {}
        first, last = sweep["trials"][0]["run"], sweep["trials"][-1]["run"]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    best = sweep.get("best")
    hint = f"the best is {best}: `runner status {best}`" if best else f"`runner status {first}`"
    return f"'{name}' is a sweep, whose runs are {first} to {last}; name one of them; {hint}"


def sweep_folder(cli: CliContext, name: str) -> Path | None:
    """Return the folder on this machine that has the record of sweep ``name``; None without one."""
    folders = [target.volumes.run(name) for target in _targets(cli)] if is_run_name(name) else []
    return next((folder for folder in folders if (folder / SWEEP_RECORD).exists()), None)


def _not_configured(target: Target) -> list[tuple[Target, str]]:
    try:
        target.check_configured()
    except RunnerError as error:
        return [(target, error.message)]
    return []


def _warn_all(cli: CliContext, unreachable: list[tuple[Target, str]]) -> None:
    for target, error in {target.name: (target, error) for target, error in unreachable}.values():
        _warn_unreachable(cli, target, error)


def _warn_unreachable(cli: CliContext, target: Target, error: str) -> None:
    cli.warn(f"skipped target {target.name}: {error}")
    cli.unreachable_targets.add(target.name)


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in "*?[")  # names of runs contain none of these


def _list_of(names: list[str]) -> str:
    if not names:
        return NO_RUNS
    rest = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"the runs are {', '.join(names[:MAX_NAMES])}{rest}; `runner runs` lists them"


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
        return None  # a different run of that name
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

    None if it is a different run.
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


def _ran_since(remote: RunRecord, local: RunRecord | None) -> bool:
    """Return True if the remote run started a command after the last one of the local run."""
    last = max((attempt.started for attempt in local.attempts), default=0.0) if local else 0.0
    return remote.job == COMMAND.name and any(attempt.started > last for attempt in remote.attempts)


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
