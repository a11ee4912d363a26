"""When a heartbeat is of a process that is at work: as the container's health check has it."""

from __future__ import annotations

from job.health import FRESH_SECONDS


def is_fresh(age: float | None) -> bool:
    """``age`` in seconds; None for a run that has none."""
    return age is not None and age < FRESH_SECONDS
