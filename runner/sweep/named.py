"""A sweep's name where a run's is wanted: which of its runs may be meant."""

from __future__ import annotations

from job.runs import RUN_NAME
from runner.checkout import find_checkout, volumes
from runner.sweep.record import read_sweep
from runner.terminal import Environment


def runs_of_sweep(env: Environment, name: str) -> str:
    """What to type where ``name`` is that of a sweep, whose folder is on this machine; '' where it is none."""
    if not RUN_NAME.match(name):
        return ""
    checkout = find_checkout(env.cwd)
    for environ in (env.environ, {}):
        record = read_sweep(volumes(checkout, environ).run(name))
        if record is not None and record.trials:
            first, last, best = record.trials[0].run, record.trials[-1].run, record.best
            chosen = best.run if best else first
            return (
                f"'{name}' is a sweep, whose runs are {first} to {last}; name one of them"
                f"{f', the best is {chosen}' if best else ''}: runner status {chosen}   "
                f"(the line `runner sweep` that began it goes on with it, and shows its results)"
            )
    return ""
