"""Build the next command to type, for the way that this job was started."""

from __future__ import annotations

from pathlib import Path

from job.paths import VolumePaths
from job.run_record import launch_facts

INSIDE = Path("/vol/checkpoints")  # mount point in the image

MODULES = {"train": "model.train", "sample": "model.sample"}


def next_command(job: str, arguments: str) -> str:
    """Return ``runner TARGET JOB ARGUMENTS`` for the target that the runner used.

    Without a runner: Compose's command in the container, and the host's elsewhere.
    """
    target = launch_facts().get("target")
    if target is None and VolumePaths.current().checkpoints == INSIDE:
        return f"docker compose run --rm {job} python -m {MODULES[job]} {arguments}"
    return f"runner {target or 'host'} {job} {arguments}"
