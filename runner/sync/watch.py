"""``runner pull --watch``: a live run's records and new checkpoints, until it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from model.runs import read_record
from runner.cloud.patience import Patience, Unavailable
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
    env: Environment,
    place: Place,
    path: str,
    everything: bool,
    every: float,
    outcome: Outcome,
    clock: Clock | None = None,
) -> Outcome:
    """Look again each ``every`` seconds until the run has ended and all of it is here; the last outcome.

    ``outcome`` is that of the first look. A look that fails is told once and made again.
    """
    clock = clock or Clock()
    run = path.strip("/").split("/")[0]
    if not run:
        raise usage("--watch follows one run; name it: `runner pull checkpoints RUN --watch`")
    place = Place(place.volume, VolumeFiles(place.files.volume, BRIEF), place.root, place.journal, place.lock)
    env.say(f"watching run {run}; Ctrl-C ends the watch and not the run")
    ended: float | None = None
    told = ""
    while True:
        record = read_record(place.root / run)
        status = record.status if record is not None else "running"
        if status == "running":
            ended = None
        elif ended is None:
            ended = clock.now()
        over = status in ("finished", "failed")
        over = over or (ended is not None and clock.now() - ended >= ATTEMPT_SECONDS)
        if over and outcome.is_complete and _looked_after(outcome):
            break
        clock.sleep(every if not over else min(every, 1.0))
        try:
            with alone(place, env.say):
                outcome = Pull(place, path, everything).carry_out(env, quiet=True)
            trouble = outcome.missing[0].why if outcome.missing else ""
        except Unavailable as error:
            trouble = str(error)
        except RunnerError as error:
            trouble = error.message
        except OSError as error:
            trouble = str(error)
        if trouble and trouble != told:
            env.say(f"not all came: {trouble}; trying again")
        told = trouble
        for checkpoint in outcome.plan.checkpoints if not trouble else ():
            env.say(f"{checkpoint.folder} is here")
    say_outcome(env, outcome, "pulled", f"into {place.root}")
    env.say(f"run {run} is {status}")
    return outcome


def _looked_after(outcome: Outcome) -> bool:
    """Whether the last look found nothing that moved: what a container wrote last comes with its last commit,
    after the record that says that the run ended."""
    return outcome.plan.count == 0
