"""``cloud.json`` in a run's folder: each attempt on Modal, why it ended and what it cost.

The container writes it; the runner reads it from the volume, also after the run was lost. A killed
attempt can't record its end: the last time it was seen counts. Standard library only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from job.files import read_file, write_atomically
from job.run_record import EndReason
from job.typed_json import read_json

NAME = "cloud.json"

LAUNCH_NAME = "launch.json"  # the last launch, by the runner
TAGS_NAME = "tags.json"  # of `runner set --tag`

# `runner stop` writes this file next to it: {"call": the call to end}.
STOP_NAME = "cloud_stop.json"

# An attempt not seen for this long is gone: it records itself every 15 s and commits every 60 s.
STALE_S = 90.0


@dataclass
class CloudAttempt:
    """One container that worked on the run. Times are seconds since the epoch."""

    call: str  # the function call that it belongs to
    container: str
    started: float
    seen: float  # the last time that it recorded itself
    usd_per_hour: float
    gpu: str = ""  # as nvidia-smi names it; '' without one
    ended: float | None = None
    reason: str | None = None  # an EndReason
    detail: str = ""  # the measurement that led to the reason
    status: int | None = None  # the job's exit status

    def seconds(self, now: float) -> float:
        """Return how long it worked, until ``now`` at most."""
        end = self.ended if self.ended is not None else min(now, self.seen + STALE_S)
        return max(0.0, end - self.started)

    def cost(self, now: float, since: float = 0.0) -> float:
        """Return its US dollars from ``since`` until ``now`` or its end."""
        seconds = self.seconds(now)
        seconds = max(0.0, min(seconds, self.started + seconds - since))
        return seconds * self.usd_per_hour / 3600


@dataclass
class AttemptLog:
    """All attempts of a run, over all of its launches."""

    attempts: list[CloudAttempt] = field(default_factory=list)
    call: str = ""  # the newest function call
    app: str = ""
    status: int | None = None  # the exit status of that call; None while it is active
    warned_cap: float | None = None  # the --max-cost of which most was spent when a message said so
    reason: str = ""

    def begin(self, attempt: CloudAttempt, app: str) -> None:
        """Add an attempt. Earlier ones without an end were killed."""
        for old in self.attempts:
            if old.ended is None:
                old.ended, old.reason = old.seen, EndReason.KILLED
        self.attempts.append(attempt)
        self.call, self.app, self.status, self.reason = attempt.call, app, None, ""

    def end_attempt(self, reason: EndReason, status: int | None, now: float) -> None:
        """Record the end of the newest attempt; the call stays active."""
        attempt = self.attempts[-1]
        attempt.ended = attempt.seen = now
        attempt.reason, attempt.status = reason, status

    def end_call(self, status: int, reason: EndReason) -> None:
        """Record the end of the call: no attempt follows."""
        self.status, self.reason = status, reason

    def seconds(self, now: float) -> float:
        """Return the seconds of all attempts."""
        return sum(attempt.seconds(now) for attempt in self.attempts)

    def cost(self, now: float, since: float = 0.0) -> float:
        """Return the US dollars of all attempts, from ``since`` on."""
        return sum(attempt.cost(now, since) for attempt in self.attempts)

    def dumps(self) -> str:
        """Return the file's text, with the sums for readers."""
        tree = asdict(self)
        now = max((attempt.seen for attempt in self.attempts), default=0.0)
        for attempt, values in zip(self.attempts, tree["attempts"], strict=True):
            values.update(seconds=round(attempt.seconds(now), 1), cost=round(attempt.cost(now), 4))
        tree.update(seconds=round(self.seconds(now), 1), cost=round(self.cost(now), 4))
        return json.dumps(tree, indent=2) + "\n"

    def write(self, folder: Path) -> None:
        """Replace the file in ``folder`` atomically."""
        write_atomically(folder / NAME, self.dumps())


def parse_log(text: str | bytes | None) -> AttemptLog:
    """Return the log in a file's text; an empty one if the text is missing or invalid."""
    try:
        return read_json(AttemptLog, text or "{}")
    except ValueError:
        return AttemptLog()


def read_log(folder: Path) -> AttemptLog:
    """Return the log of the run in ``folder``."""
    try:
        return parse_log(read_file(folder / NAME))
    except OSError:
        return AttemptLog()
