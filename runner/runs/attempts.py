"""``cloud.json`` in a run's folder: each attempt on Modal, why it ended and what it cost.

The container writes it; the runner reads it from the volume, also after the run was lost. A killed
attempt can't record its end: the last time it was seen counts. Standard library only.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from job.run_record import EndReason

NAME = "cloud.json"

# `runner stop` writes this file beside it: {"call": the call to end}.
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
    detail: str = ""  # the measurement behind the reason
    status: int | None = None  # the job's exit status

    def seconds(self, now: float) -> float:
        """Return how long it worked, until ``now`` at most."""
        end = self.ended if self.ended is not None else min(now, self.seen + STALE_S)
        return max(0.0, end - self.started)

    def cost(self, now: float) -> float:
        """Return its US dollars until ``now`` or its end."""
        return self.seconds(now) * self.usd_per_hour / 3600


@dataclass
class AttemptLog:
    """All attempts of a run, over all of its launches."""

    attempts: list[CloudAttempt] = field(default_factory=list)
    call: str = ""  # the newest function call
    app: str = ""
    status: int | None = None  # the exit status of that call; None while it is active
    reason: str = ""

    def begin(self, attempt: CloudAttempt, app: str) -> None:
        """Add an attempt. Earlier ones without an end were killed."""
        for old in self.attempts:
            if old.ended is None:
                old.ended, old.reason = old.seen, EndReason.KILLED
        self.attempts.append(attempt)
        self.call, self.app, self.status, self.reason = attempt.call, app, None, ""

    def end_attempt(self, reason: str, status: int | None, now: float) -> None:
        """Record the end of the newest attempt; the call stays active."""
        attempt = self.attempts[-1]
        attempt.ended = attempt.seen = now
        attempt.reason, attempt.status = reason, status

    def end_call(self, status: int, reason: str) -> None:
        """Record the end of the call: no attempt follows."""
        self.status, self.reason = status, reason

    def seconds(self, now: float) -> float:
        """Return the seconds of all attempts."""
        return sum(attempt.seconds(now) for attempt in self.attempts)

    def cost(self, now: float) -> float:
        """Return the US dollars of all attempts."""
        return sum(attempt.cost(now) for attempt in self.attempts)

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
        temporary = folder / f".{NAME}.{os.getpid()}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(self.dumps())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / NAME)


def parse_log(text: str | bytes | None) -> AttemptLog:
    """Return the log in a file's text; an empty one if the text is missing or invalid."""
    try:
        tree = json.loads(text or "{}")
        attempts = [CloudAttempt(**_known(CloudAttempt, item)) for item in tree.pop("attempts", [])]
        return AttemptLog(**{**_known(AttemptLog, tree), "attempts": attempts})
    except (ValueError, TypeError, AttributeError):
        return AttemptLog()


def read_log(folder: Path) -> AttemptLog:
    """Return the log of the run in ``folder``."""
    try:
        return parse_log((folder / NAME).read_bytes())
    except OSError:
        return AttemptLog()


def _known(kind: type, tree: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of ``tree`` that are fields of ``kind``, if their types are right."""
    names = {item.name for item in fields(kind)}
    values = {key: value for key, value in tree.items() if key in names}
    numbers = {"started", "seen", "usd_per_hour"} & values.keys()
    optional = {"ended", "status"} & values.keys()
    valid = all(_is_number(values[key]) for key in numbers) and all(
        values[key] is None or _is_number(values[key]) for key in optional
    )
    if not valid:
        raise ValueError("expected numbers")
    return values


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
