"""When an attempt must end, and what that means. Pure, standard library only: the body asks it too.

Three clocks run. Modal's own, at most 24 hours for each attempt: what is not done goes on in another attempt.
The run's --timeout and its --max-cost, over all attempts: what is not done then is left for the user.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from job.run_record import EndReason

LONGEST_ATTEMPT = 24 * 3600.0  # seconds; Modal's limit for each attempt

RETRIES = 10  # Modal's limit; so at most 11 attempts that are used up

# 11 attempts, an hour of each left for starts and ends.
LONGEST_RUN_S = (RETRIES + 1) * 23 * 3600.0

# Seconds that a checkpoint may take to be written and committed before the clock stands at its end. Of a short
# span a tenth, so that most of it is work. Once a run has shown how long it takes to stop, that counts.
MARGIN = 300.0

SHARE = 0.1

FLOOR, TIMES = (
    2.0,
    3.0,
)  # seconds in any case; the end may take that many times as long as what was seen


@dataclass(frozen=True)
class Deadline:
    """``stop``: when to ask for the checkpoint; ``kill``: when the time is over. Seconds since the epoch."""

    stop: float
    kill: float
    reason: EndReason


def with_room(deadline: Deadline, began: float, seconds: float) -> Deadline:
    """``deadline`` of an attempt that began at ``began``, with a ``stop`` that leaves what it takes to stop: ``seconds`` for
    hearing of it, writing a checkpoint and committing it, the slowest of each so far."""
    needed = TIMES * seconds
    room = min(MARGIN, FLOOR + needed, max(needed, margin(deadline.kill - began)))
    return replace(deadline, stop=deadline.kill - room)


def margin(span: float) -> float:
    """Seconds before the end of ``span`` seconds at which the job is asked to stop."""
    return min(MARGIN, SHARE * span)


def next_deadline(
    started: float,
    attempt_seconds: float,
    total_seconds: float | None,
    used_seconds: float,
    max_cost: float | None,
    spent: float,
    usd_per_hour: float,
) -> Deadline:
    """The first of the three for an attempt that started at ``started``.

    ``used_seconds`` and ``spent`` (dollars) are those of the attempts before it.
    """
    last: list[tuple[float, EndReason]] = []
    if total_seconds is not None:
        last.append((max(0.0, total_seconds - used_seconds), EndReason.RUN_TIMEOUT))
    if max_cost is not None and usd_per_hour > 0:
        last.append((max(0.0, max_cost - spent) * 3600 / usd_per_hour, EndReason.BUDGET))
    span, reason = min(last, default=(attempt_seconds + 1, EndReason.ATTEMPT_TIMEOUT))
    if span > attempt_seconds:
        span, reason = attempt_seconds, EndReason.ATTEMPT_TIMEOUT
    else:  # no further attempt for the last minutes; and Modal's own clock must not come first
        span = min(span, attempt_seconds - margin(attempt_seconds))
    return Deadline(started + span - margin(span), started + span, reason)


def attempt_timeout(total_seconds: float | None, used_seconds: float, longest: float) -> int:
    """Modal's time-out for each attempt, in whole seconds: no longer than the run may still take."""
    left = longest if total_seconds is None else max(60.0, (total_seconds - used_seconds) * 1.25)
    return int(min(longest, LONGEST_ATTEMPT, left))
