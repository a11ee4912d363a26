"""Runs by name, on whichever target they are."""

from __future__ import annotations

from dataclasses import dataclass

from runner.checkout import find_checkout
from runner.errors import RunnerError, did_you_mean, not_found
from runner.targets import all_targets
from runner.targets.protocol import RunState, Target
from runner.terminal import Environment


@dataclass(frozen=True)
class Found:
    """A run and the target that it was last on."""

    state: RunState
    target: Target


def every_run(env: Environment) -> list[Found]:
    """All runs on all targets, newest first. A target that can't be asked is named on stderr, and skipped."""
    found = []
    for target in all_targets(env, find_checkout(env.cwd)):
        try:
            found += [Found(state, target) for state in target.runs()]
        except RunnerError as error:
            env.warn(f"{target.name} is left out: {error.message}")
    return sorted(found, key=lambda item: (-(item.state.started or 0.0), item.state.run))


def find_run(env: Environment, name: str) -> Found:
    """The run ``name``, newest first where several targets have one. Raises RunnerError, exit code 102."""
    here = []
    for target in all_targets(env, find_checkout(env.cwd)):
        try:
            state = target.state(name)
        except RunnerError as error:
            env.warn(f"{target.name} is left out: {error.message}")
            continue
        if state is not None:
            here.append(Found(state, target))
    if here:
        return max(here, key=lambda item: (item.state.alive, item.state.started or 0.0))
    from runner.sweep.named import runs_of_sweep  # for a mistake alone

    if sweep := runs_of_sweep(env, name):
        raise not_found(sweep)
    names = {item.state.run for item in every_run(env)}
    guess = did_you_mean(name, names)
    hint = guess or ("; `runner runs` lists them" if names else "; there are no runs yet")
    raise not_found(f"there is no run '{name}'{hint}")


def newest_run(env: Environment) -> Found:
    """The run that was started last. Raises RunnerError, exit code 102, where there is none."""
    found = every_run(env)
    if not found:
        raise not_found("there are no runs yet; `runner local` or `runner host` trains the first one")
    return found[0]
