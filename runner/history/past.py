"""Runs by name, each read to its end: for what looks at a run once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from runner.errors import not_found
from runner.history.reader import History, Place, Reader
from runner.runs.find import find_run
from runner.terminal import Environment


def read_runs(env: Environment, runs: Sequence[str], all_samples: bool = False) -> list[History]:
    """The runs as they are now. Raises RunnerError, exit code 102, where there is no such run."""
    places = [_place(env, run) for run in runs]
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda run, place: _read(run, place, all_samples), runs, places))


def _read(run: str, place: Place, all_samples: bool) -> History:
    history = Reader(run, place, all_samples).look_at_all()
    if history is None:
        raise not_found(f"run '{run}' was removed; `runner runs` lists those that are there")
    return history


def _place(env: Environment, run: str) -> Place:
    """Its target; where no target answers for it, the copy that was pulled from the cloud."""
    found = find_run(env, run)
    if found.state.is_copy:
        env.warn(f"the cloud does not answer for run '{run}'; read is the copy that was pulled")
    return found.target
