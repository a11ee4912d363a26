"""Runs by name, on whichever target they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from job.run_record import RunStatus
from runner.console import CliContext
from runner.errors import RunnerError, did_you_mean, not_found
from runner.plan import is_active_elsewhere
from runner.project import find_checkout
from runner.runs.mirror import mirrored_runs
from runner.target import RunInfo, Target, all_targets
from runner.targets.modal.account import NO_TOKEN, is_set_up


@dataclass(frozen=True)
class ResolvedRun:
    """A run and the target that it was last on; where the cloud does not answer for it, its copy here."""

    state: RunInfo
    target: Target


def every_run(cli: CliContext) -> list[ResolvedRun]:
    """All runs on all targets, newest first. A target that can't be asked is skipped, and named on stderr where
    the answer may be wrong without it."""
    found, silent = _on_targets(cli)
    copies = mirrored_runs(cli)
    known = {item.state.run for item in found}
    pulled = [ResolvedRun(state, copies) for state in copies.runs() if state.run not in known]
    for name, why in silent.items():
        # Without a token nothing goes on in the cloud that was begun here and is finished by its copy.
        if (
            why != NO_TOKEN
            or not pulled
            or any(item.state.status != RunStatus.FINISHED for item in pulled)
        ):
            _say_silent(cli, {name: why})
    return sorted(found + pulled, key=lambda item: (-(item.state.started or 0.0), item.state.run))


def _on_targets(cli: CliContext) -> tuple[list[ResolvedRun], dict[str, str]]:
    """The runs of the targets that answer, and why others do not."""
    found, silent = [], {}
    for target in all_targets(cli, find_checkout(cli.cwd)):
        try:
            found += [ResolvedRun(state, target) for state in target.runs()]
        except RunnerError as error:
            silent[target.name] = error.message
    return found, silent


def find_run(cli: CliContext, name: str) -> ResolvedRun:
    """The run ``name``, newest first where several targets have one. Raises RunnerError, exit code 102."""
    here, silent = [], {}
    for target in all_targets(cli, find_checkout(cli.cwd)):
        try:
            state = target.state(name)
        except RunnerError as error:
            silent[target.name] = error.message
            continue
        if state is not None:
            here.append(ResolvedRun(state, target))
    if here:
        found = max(here, key=lambda item: (item.state.alive, item.state.started or 0.0))
        if (
            not found.state.alive and found.state.status != RunStatus.FINISHED
        ):  # the cloud may have taken it up
            _say_silent(cli, silent)
        return found
    copies = mirrored_runs(cli)
    copy = copies.state(name)
    if copy is not None:
        if copy.status != RunStatus.FINISHED:
            _say_silent(cli, silent or ({} if is_set_up(cli.environ) else {"cloud": NO_TOKEN}))
        return ResolvedRun(copy, copies)
    others, still_silent = _on_targets(cli)
    _say_silent(cli, {**still_silent, **silent})
    from runner.sweep.record import runs_of_sweep  # for a mistake alone

    if sweep := runs_of_sweep(cli, name):
        raise not_found(sweep)
    names = {item.state.run for item in others} | {state.run for state in copies.runs()}
    guess = did_you_mean(name, names)
    hint = guess or ("; `runner runs` lists them" if names else "; there are no runs yet")
    raise not_found(f"there is no run '{name}'{hint}")


def refuse_a_second(found: ResolvedRun, target: Target) -> None:
    """RunnerError where the run is at work on another target than the one on which it is to go on."""
    if found.state.alive and found.target is not target:
        raise is_active_elsewhere(found.state.run, found.target.name, target.name)


def _say_silent(cli: CliContext, silent: dict[str, str]) -> None:
    for name, why in silent.items():
        cli.warn(f"{name} is left out: {why}")
        cli.unreachable_targets.add(name)


def newest_run(cli: CliContext) -> ResolvedRun:
    """The run that was started last. Raises RunnerError, exit code 102, where there is none."""
    found = every_run(cli)
    if not found:
        raise not_found(
            "there are no runs yet; `runner local` or `runner host` trains the first one"
        )
    return found[0]


SHOWN = 8  # names in an error


def runs_named(cli: CliContext, words: Sequence[str]) -> list[str]:
    """The names, in the order of ``words``; those of a pattern (``seed*``) by name, without what is there already.

    Raises RunnerError, exit code 102, where a pattern fits no run.
    """
    if not any(map(_is_pattern, words)):
        return list(words)
    known = sorted(found.state.run for found in every_run(cli))
    names: list[str] = []
    for word in words:
        if not _is_pattern(word):
            names.append(word)
            continue
        fitting = [name for name in known if fnmatchcase(name, word)]
        if not fitting:
            raise not_found(f"no run fits '{word}'; {_there_are(known)}")
        names += [name for name in fitting if name not in names and name not in words]
    return names


def _is_pattern(word: str) -> bool:
    return any(sign in word for sign in "*?[")  # no run has them in its name


def _there_are(known: list[str]) -> str:
    if not known:
        return "there are no runs yet; `runner local` or `runner host` trains the first one"
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f"there are {', '.join(known[:SHOWN])}{more}; `runner runs` lists them"
