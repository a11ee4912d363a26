"""Is a run alive? The container's health check; free of torch, since it starts every half minute.

    python -m job.health

Exit 0 while a running run's heartbeat is fresh, 1 otherwise. A run that was killed keeps the status
`running` in its record and is told from a live one by the age of its heartbeat alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from job.exit_status import ExitStatus
from job.paths import VolumePaths
from job.run_record import HEARTBEAT_SECONDS, RunStatus, heartbeat_age, read_record

# Twelve beats: a machine that swaps or compiles on every core may miss a few and still be at work.
FRESH_SECONDS = 12 * HEARTBEAT_SECONDS


def running_runs(checkpoints: Path) -> dict[str, float]:
    """Each run whose record says that it is running → seconds since its last heartbeat."""
    found = {}
    for heartbeat in sorted(checkpoints.glob("*/heartbeat")):
        age, record = heartbeat_age(heartbeat.parent), read_record(heartbeat.parent)
        if age is not None and record is not None and record.status == RunStatus.RUNNING:
            found[heartbeat.parent.name] = age
    return found


def main() -> ExitStatus:
    runs = running_runs(VolumePaths.current().checkpoints)
    for name, age in runs.items():
        print(f"{name}: heartbeat {age:.0f} s ago")
    if not runs:
        print("no run is running")
    return (
        ExitStatus.DONE if any(age < FRESH_SECONDS for age in runs.values()) else ExitStatus.ERROR
    )


if __name__ == "__main__":
    sys.exit(main())
