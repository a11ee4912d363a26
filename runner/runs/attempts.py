"""``cloud.json`` in a run's folder: each attempt in the cloud, why it ended, what it cost. Standard library only.

The body writes it inside the container; the runner reads it from the volume, also when the run is dead.
A killed attempt can't say when it ended: then it is the last time that it was seen at work.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from job.run_record import EndReason

NAME = "cloud.json"

STOP = "cloud_stop.json"  # beside it: what `runner stop` leaves for the body, {"call": the call to end}

# Seconds. One that was not seen for so long is gone: it notes itself every 15 and commits every 60.
STALE = 90.0


@dataclass
class CloudAttempt:
    """One container that worked on the run. Times are seconds since the epoch, prices US dollars an hour."""

    call: str  # the function call that it belongs to
    container: str
    started: float
    seen: float  # last time that it was at work
    usd_per_hour: float
    gpu: str = ""  # as nvidia-smi names it; '' without one
    ended: float | None = None
    # an EndReason
    reason: str | None = None
    detail: str = ""  # what was seen, where the reason alone says too little
    status: int | None = None  # the job's exit status

    def seconds(self, now: float) -> float:
        """How long it worked, or has worked until ``now``."""
        end = self.ended if self.ended is not None else min(now, self.seen + STALE)
        return max(0.0, end - self.started)

    def cost(self, now: float) -> float:
        """Dollars until ``now`` or its end."""
        return self.seconds(now) * self.usd_per_hour / 3600


@dataclass
class AttemptLog:
    """All attempts of a run, over all of its launches."""

    attempts: list[CloudAttempt] = field(default_factory=list)
    call: str = ""  # the newest function call
    app: str = ""
    status: int | None = None  # how that call ended: an exit status; None while it goes on
    reason: str = ""

    def begin(self, attempt: CloudAttempt, app: str) -> None:
        """Add an attempt. Those before it that did not say how they ended were killed."""
        for old in self.attempts:
            if old.ended is None:
                old.ended, old.reason = old.seen, EndReason.KILLED
        self.attempts.append(attempt)
        self.call, self.app, self.status, self.reason = attempt.call, app, None, ""

    def end_attempt(self, reason: str, status: int | None, now: float) -> None:
        """The newest attempt is over; the call goes on where ``status`` is None."""
        attempt = self.attempts[-1]
        attempt.ended = attempt.seen = now
        attempt.reason, attempt.status = reason, status

    def end_call(self, status: int, reason: str) -> None:
        """The call is over: no further attempt follows."""
        self.status, self.reason = status, reason

    def seconds(self, now: float) -> float:
        """Over all attempts."""
        return sum(attempt.seconds(now) for attempt in self.attempts)

    def cost(self, now: float) -> float:
        """Dollars over all attempts."""
        return sum(attempt.cost(now) for attempt in self.attempts)

    def dumps(self) -> str:
        """As the file holds it, with the sums that a reader wants."""
        tree = asdict(self)
        now = max((a.seen for a in self.attempts), default=0.0)
        for attempt, values in zip(self.attempts, tree["attempts"], strict=True):
            values.update(seconds=round(attempt.seconds(now), 1), cost=round(attempt.cost(now), 4))
        tree.update(seconds=round(self.seconds(now), 1), cost=round(self.cost(now), 4))
        return json.dumps(tree, indent=2) + "\n"

    def write(self, folder: Path) -> None:
        """Replace the file, atomically."""
        temporary = folder / f".{NAME}.{os.getpid()}.tmp"
        with temporary.open("w") as file:
            file.write(self.dumps())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / NAME)


def parse(text: str | bytes | None) -> AttemptLog:
    """The ledger in a file's text; an empty one where there is none or it can't be read."""
    try:
        tree = json.loads(text or "{}")
        attempts = [CloudAttempt(**_known(CloudAttempt, a)) for a in tree.pop("attempts", [])]
        return AttemptLog(**{**_known(AttemptLog, tree), "attempts": attempts})
    except (ValueError, TypeError, AttributeError):
        return AttemptLog()


def read(folder: Path) -> AttemptLog:
    """The ledger of the run in ``folder``."""
    try:
        return parse((folder / NAME).read_text())
    except OSError:
        return AttemptLog()


def _known(kind: type, tree: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    return {key: value for key, value in tree.items() if key in names}
