"""Deadlines of an attempt. Pure, standard library only: the container uses it too.

Three limits apply: Modal's own, at most 24 hours per attempt, after which another attempt resumes;
and the run's --timeout and --max-cost over all attempts, after which none does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from job.run_record import EndReason

MAX_ATTEMPT_S = 24 * 3600.0  # Modal's limit
MAX_RETRIES = 10  # Modal's limit

# 11 attempts, an hour of each left for starting and stopping.
LONGEST_RUN_S = (MAX_RETRIES + 1) * 23 * 3600.0

# Time for the last checkpoint to be written and committed: at most this long, and at most this
# share of the attempt. Once the run has shown how long it takes to stop, that measurement counts.
MAX_MARGIN_S = 300.0
MARGIN_SHARE = 0.1

# The margin from a measurement: this many times the measured seconds, plus a minimum.
SAFETY_FACTOR = 3.0
MIN_MARGIN_S = 2.0


@dataclass(frozen=True)
class Deadline:
    """The times to ask the job to stop and to kill it, in seconds since the epoch."""

    stop: float
    kill: float
    reason: EndReason


def with_measured_margin(deadline: Deadline, started: float, stopping_s: float) -> Deadline:
    """Return ``deadline`` with a ``stop`` that leaves enough time to stop.

    ``stopping_s`` is the measured time to notice the request, write a checkpoint and commit it.
    """
    needed = SAFETY_FACTOR * stopping_s
    margin = max(needed, _default_margin(deadline.kill - started))
    return replace(deadline, stop=deadline.kill - min(MAX_MARGIN_S, MIN_MARGIN_S + needed, margin))


def _default_margin(span: float) -> float:
    return min(MAX_MARGIN_S, MARGIN_SHARE * span)


def next_deadline(
    started: float,
    attempt_s: float,
    total_s: float | None,
    used_s: float,
    max_cost: float | None,
    spent: float,
    usd_per_hour: float,
) -> Deadline:
    """Return the earliest of the three limits for an attempt that started at ``started``.

    ``used_s`` seconds and ``spent`` dollars belong to earlier attempts.
    """
    limits: list[tuple[float, EndReason]] = []
    if total_s is not None:
        limits.append((max(0.0, total_s - used_s), EndReason.RUN_TIMEOUT))
    if max_cost is not None and usd_per_hour > 0:
        limits.append((max(0.0, max_cost - spent) * 3600 / usd_per_hour, EndReason.BUDGET))
    span, reason = min(limits, default=(attempt_s + 1, EndReason.ATTEMPT_TIMEOUT))
    if span > attempt_s:
        span, reason = attempt_s, EndReason.ATTEMPT_TIMEOUT
    else:  # end before Modal's limit, which would start another attempt for the last minutes
        span = min(span, attempt_s - _default_margin(attempt_s))
    return Deadline(started + span - _default_margin(span), started + span, reason)


def attempt_timeout(total_s: float | None, used_s: float, longest_s: float) -> int:
    """Return Modal's timeout for an attempt in whole seconds: at most what the run has left."""
    left = longest_s if total_s is None else max(60.0, (total_s - used_s) * 1.25)
    return int(min(longest_s, MAX_ATTEMPT_S, left))
