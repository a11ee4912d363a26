"""Find runs by name, on whichever target they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from job.run_record import RUN_NAME, RunStatus
from runner.console import CliContext
from runner.errors import RunnerError, did_you_mean, not_found
from runner.plan import is_active_elsewhere
from runner.project import find_checkout
from runner.target import RunInfo, RunSource, Target, all_targets

NO_RUNS = "no runs yet; `runner local` or `runner host` trains the first one"
MAX_NAMES = 8  # in an error


@dataclass(frozen=True)
class ResolvedRun:
    """A run, the target that it was last on, and ``source``, which reads it.

    ``source`` is the target itself, or the pulled copies if the target does not answer for the run.
    """

    state: RunInfo
    target: Target
    source: RunSource

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
    found, unreachable = _runs_of_targets(cli)
    known = {run.state.run for run in found}
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
    return sorted(found + copies, key=lambda run: (-(run.state.started or 0.0), run.state.run))


def find_run(cli: CliContext, name: str) -> ResolvedRun:
    """Return the run; if several targets have one of that name, the active or newest one.

    Raises RunnerError, exit code 102, if no target has it.
    """
    found, unreachable = [], []
    for target in _targets(cli):
        try:
            state = target.state(name)
        except RunnerError as error:
            unreachable.append((target, error.message))
            continue
        if state is not None:
            found.append(ResolvedRun(state, target, target))
    if found:
        newest = max(found, key=lambda run: (run.state.alive, run.state.started or 0.0))
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


def newest_run(cli: CliContext) -> ResolvedRun:
    """Return the run that was started last. Raises RunnerError, exit code 102, without any run."""
    found = every_run(cli)
    if not found:
        raise not_found(NO_RUNS)
    return found[0]


def match_names(cli: CliContext, words: Sequence[str]) -> list[str]:
    """Expand patterns such as ``seed*`` to the names of runs, without duplicates.

    Raises RunnerError, exit code 102, for a pattern that matches nothing.
    """
    if not any(map(_is_pattern, words)):
        return list(words)
    known = sorted(found.state.run for found in every_run(cli))
    names: list[str] = []
    for word in words:
        if not _is_pattern(word):
            names.append(word)
            continue
        matching = [name for name in known if fnmatchcase(name, word)]
        if not matching:
            raise not_found(f"no run matches '{word}'; {_list_of(known)}")
        names += [name for name in matching if name not in names and name not in words]
    return names


def select_run(cli: CliContext, name: str | None) -> ResolvedRun:
    """Return the run ``name``; without a name the newest run, naming it on stderr."""
    if name:
        return find_run(cli, name)
    found = newest_run(cli)
    cli.info(f"run '{found.state.run}' (the newest)")
    return found


def refuse_if_active_elsewhere(found: ResolvedRun, target: Target) -> None:
    """Raise RunnerError if the run is active on a target other than ``target``."""
    if not found.state.alive or found.target is target:
        return
    command = (
        "pull" if found.target.has_remote_volumes else "push" if target.has_remote_volumes else ""
    )
    run = found.state.run
    copy = f"runner {command} checkpoints {run}" if command else ""
    raise is_active_elsewhere(run, found.target.name, copy)


def _targets(cli: CliContext) -> list[Target]:
    return all_targets(cli, find_checkout(cli.cwd))


def _runs_of_targets(cli: CliContext) -> tuple[list[ResolvedRun], list[tuple[Target, str]]]:
    found: list[ResolvedRun] = []
    unreachable: list[tuple[Target, str]] = []
    for target in _targets(cli):
        try:
            found += [ResolvedRun(state, target, target) for state in target.runs()]
        except RunnerError as error:
            unreachable.append((target, error.message))
    return found, unreachable


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
    names = {found.state.run for found in [*others, *_copies(cli)]}
    hint = did_you_mean(name, names) or ("; `runner runs` lists them" if names else f"; {NO_RUNS}")
    return f"no run '{name}'{hint}"


def _describe_sweep(cli: CliContext, name: str) -> str:
    """Return the error for the name of a sweep on this machine, from its ``sweep.json``.

    '' for any other.
    """
    if not RUN_NAME.match(name):
        return ""
    for target in _targets(cli):
        try:
            sweep = json.loads((target.volumes.run(name) / "sweep.json").read_bytes())
            first, last = sweep["trials"][0]["run"], sweep["trials"][-1]["run"]
            best = sweep.get("best")
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue
        hint = f"the best is {best}: `runner status {best}`" if best else f"`runner status {first}`"
        return f"'{name}' is a sweep, whose runs are {first} to {last}; name one of them; {hint}"
    return ""


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


def _is_pattern(word: str) -> bool:
    return any(sign in word for sign in "*?[")  # names of runs contain none of these


def _list_of(known: list[str]) -> str:
    if not known:
        return NO_RUNS
    rest = f" and {len(known) - MAX_NAMES} more" if len(known) > MAX_NAMES else ""
    return f"the runs are {', '.join(known[:MAX_NAMES])}{rest}; `runner runs` lists them"
