"""The line to type next, by the way that this job was started."""

from __future__ import annotations

from pathlib import Path

from job.locations import Locations
from job.runs import launch_facts

INSIDE = Path("/vol/checkpoints")  # of the image, which compose and Modal have
MODULES = {"train": "model.train", "sample": "model.sample"}


def next_line(job: str, words: str) -> str:
    """``runner cloud sample WORDS`` on the target that the runner took; without a runner compose's line in the container,
    and the host's elsewhere."""
    target = launch_facts().get("target")
    if target is None and Locations.current().checkpoints == INSIDE:
        return f"docker compose run --rm {job} python -m {MODULES[job]} {words}"
    return f"runner {target or 'host'} {job} {words}"
