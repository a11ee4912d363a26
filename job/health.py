"""Report whether a run is alive: the container's health check, which runs every 30 s without torch.

    python -m job.health

Exit 0 if a running run has a fresh heartbeat, else 1. A killed run keeps the status `running` in
its record; only the age of its heartbeat tells.
"""

from __future__ import annotations

import sys
from pathlib import Path

from job.exit_status import ExitStatus
from job.paths import VolumePaths
from job.run_record import HEARTBEAT_INTERVAL_S, RunStatus, heartbeat_age, read_record

# Twelve heartbeats: a machine that swaps or compiles on every core may miss a few.
FRESH_HEARTBEAT_S = 12 * HEARTBEAT_INTERVAL_S


def running_runs(checkpoints: Path) -> dict[str, float]:
    """Return the runs whose record says `running`, with the seconds since their last heartbeat."""
    runs = {}
    for heartbeat in sorted(checkpoints.glob("*/heartbeat")):
        age, record = heartbeat_age(heartbeat.parent), read_record(heartbeat.parent)
        if age is not None and record is not None and record.status == RunStatus.RUNNING:
            runs[heartbeat.parent.name] = age
    return runs


def main() -> ExitStatus:
    runs = running_runs(VolumePaths.current().checkpoints)
    for name, age in runs.items():
        print(f"{name}: heartbeat {age:.0f} s ago")
    if not runs:
        print("no active run")
    is_alive = any(age < FRESH_HEARTBEAT_S for age in runs.values())
    return ExitStatus.DONE if is_alive else ExitStatus.ERROR


if __name__ == "__main__":
    sys.exit(main())
