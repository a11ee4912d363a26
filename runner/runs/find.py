"""Runs by name, on whichever target they are."""

from __future__ import annotations

from dataclasses import dataclass

from runner.checkout import find_checkout
from runner.cloud.account import NO_TOKEN, is_set_up
from runner.errors import RunnerError, did_you_mean, not_found
from runner.plans.other_side import at_work
from runner.runs.pulled_copy import pulled_copies
from runner.targets import all_targets
from runner.targets.protocol import RunState, Target
from runner.terminal import Environment


@dataclass(frozen=True)
class Found:
    """A run and the target that it was last on; where the cloud does not answer for it, its copy here."""

    state: RunState
    target: Target


def every_run(env: Environment) -> list[Found]:
    """All runs on all targets, newest first. A target that can't be asked is skipped, and named on stderr where
    the answer may be wrong without it."""
    found, silent = _on_targets(env)
    copies = pulled_copies(env)
    known = {item.state.run for item in found}
    pulled = [Found(state, copies) for state in copies.runs() if state.run not in known]
    for name, why in silent.items():
        # Without a token nothing goes on in the cloud that was begun here and is finished by its copy.
        if why != NO_TOKEN or not pulled or any(item.state.status != "finished" for item in pulled):
            _say_silent(env, {name: why})
    return sorted(found + pulled, key=lambda item: (-(item.state.started or 0.0), item.state.run))


def _on_targets(env: Environment) -> tuple[list[Found], dict[str, str]]:
    """The runs of the targets that answer, and why others do not."""
    found, silent = [], {}
    for target in all_targets(env, find_checkout(env.cwd)):
        try:
            found += [Found(state, target) for state in target.runs()]
        except RunnerError as error:
            silent[target.name] = error.message
    return found, silent


def find_run(env: Environment, name: str) -> Found:
    """The run ``name``, newest first where several targets have one. Raises RunnerError, exit code 102."""
    here, silent = [], {}
    for target in all_targets(env, find_checkout(env.cwd)):
        try:
            state = target.state(name)
        except RunnerError as error:
            silent[target.name] = error.message
            continue
        if state is not None:
            here.append(Found(state, target))
    if here:
        found = max(here, key=lambda item: (item.state.alive, item.state.started or 0.0))
        if not found.state.alive and found.state.status != "finished":  # the cloud may have taken it up
            _say_silent(env, silent)
        return found
    copies = pulled_copies(env)
    copy = copies.state(name)
    if copy is not None:
        if copy.status != "finished":
            _say_silent(env, silent or ({} if is_set_up(env.environ) else {"cloud": NO_TOKEN}))
        return Found(copy, copies)
    others, still_silent = _on_targets(env)
    _say_silent(env, {**still_silent, **silent})
    from runner.sweep.named import runs_of_sweep  # for a mistake alone

    if sweep := runs_of_sweep(env, name):
        raise not_found(sweep)
    names = {item.state.run for item in others} | {state.run for state in copies.runs()}
    guess = did_you_mean(name, names)
    hint = guess or ("; `runner runs` lists them" if names else "; there are no runs yet")
    raise not_found(f"there is no run '{name}'{hint}")


def refuse_a_second(found: Found, target: Target) -> None:
    """RunnerError where the run is at work on another target than the one on which it is to go on."""
    if found.state.alive and found.target is not target:
        raise at_work(found.state.run, found.target.name, target.name)


def _say_silent(env: Environment, silent: dict[str, str]) -> None:
    for name, why in silent.items():
        env.warn(f"{name} is left out: {why}")
        env.left_out.add(name)


def newest_run(env: Environment) -> Found:
    """The run that was started last. Raises RunnerError, exit code 102, where there is none."""
    found = every_run(env)
    if not found:
        raise not_found("there are no runs yet; `runner local` or `runner host` trains the first one")
    return found[0]
