"""``runner pull --watch``: a live run's records and new checkpoints, until it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from job.runs import read_record
from runner.cloud.patience import Patience
from runner.cloud.volumes import VolumeFiles
from runner.errors import RunnerError, usage
from runner.sync.outcome import Outcome, say_outcome
from runner.sync.place import Place, alone
from runner.sync.pull import Pull
from runner.terminal import Environment

# A run that is longer than 24 hours, or was preempted, is unfinished for a while between two attempts.
ATTEMPT_SECONDS = 180.0
# A laptop that slept finds its connections dead; each look has its own patience of this kind.
BRIEF = Patience(attempts=3)


@dataclass(frozen=True)
class Clock:
    """Time in seconds, and waiting; a test has its own."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


def watch_run(
    env: Environment, place: Place, path: str, everything: bool, every: float, clock: Clock | None = None
) -> Outcome:
    """Pull each ``every`` seconds until the run has ended and all of it is here; the last outcome. A look
    that fails, also because the run is not there yet, is told once and made again."""
    clock = clock or Clock()
    run = path.strip("/").split("/")[0]
    if not run:
        raise usage("--watch follows one run; name it: `runner pull checkpoints RUN --watch`")
    place = replace(place, files=VolumeFiles(place.files.volume, BRIEF))
    env.say(f"watching run {run}; Ctrl-C ends the watch and not the run")
    ended: float | None = None
    told = ""
    while True:
        outcome, trouble = look(env, place, path, everything)
        if trouble and trouble != told:
            env.say(f"not all came: {trouble}; trying again")
        told = trouble
        for checkpoint in outcome.plan.checkpoints if outcome is not None and not trouble else ():
            env.say(f"{checkpoint.folder} is here")
        status = _status(place, run) if outcome is not None else "running"
        if status == "running":
            ended = None
        elif ended is None:
            ended = clock.now()
        over = ended is not None and (
            status in ("finished", "failed") or clock.now() - ended >= ATTEMPT_SECONDS
        )
        # What a container wrote last comes with its last commit, after the record that says that it ended:
        # so it is over when a further look found nothing new.
        if over and outcome is not None and outcome.is_complete and not outcome.plan.count:
            say_outcome(env, outcome, "pulled", f"into {place.root}")
            env.say(f"run {run} is {status}")
            return outcome
        clock.sleep(min(every, 1.0) if over else every)


def _status(place: Place, run: str) -> str:
    record = read_record(place.root / run)
    return record.status if record is not None else "running"


def look(env: Environment, place: Place, path: str, everything: bool) -> tuple[Outcome | None, str]:
    """One pull, and what went wrong with it."""
    try:
        with alone(place, env.say):
            outcome = Pull(place, path, everything).carry_out(env, quiet=True)
    except RunnerError as error:
        return None, error.message
    except OSError as error:
        return None, str(error)
    return outcome, outcome.missing[0].why if outcome.missing else ""
