"""TODO."""

from __future__ import annotations

from pathlib import Path

from job.paths import VolumePaths
from job.run_record import launch_facts

INSIDE = Path("/vol/checkpoints")  # of the image, which compose and Modal have

MODULES = {"train": "model.train", "sample": "model.sample"}


def next_command(job: str, words: str) -> str:
    """``runner cloud sample WORDS`` on the target that the runner took; without a runner compose's line in the container,
    and the host's elsewhere."""
    target = launch_facts().get("target")
    if target is None and VolumePaths.current().checkpoints == INSIDE:
        return f"docker compose run --rm {job} python -m {MODULES[job]} {words}"
    return f"runner {target or 'host'} {job} {words}"
