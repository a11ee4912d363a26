"""What was measured of this device, kept in the cache volume: `bench.roofline` writes it, the trainer reads it."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path

from job.locations import Locations


def device_label(name: str) -> str:
    """``name`` as torch's side calls the device; of a CPU its model too, as the cache may go to another machine."""
    if not name.startswith("cpu"):
        return name
    try:
        models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        models = []
    return f"{models[0] if models else platform.machine()} of {os.cpu_count()}, {name}"


def place(name: str, locations: Locations) -> Path:
    """The file of the device of that name."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_label(name).lower()).strip("-")
    return locations.cache / "roofline" / f"{slug}.json"


def remembered(name: str, number_format: str, locations: Locations) -> float | None:
    """FLOP/s that a product in `bfloat16` or `float32` reached there; None where nobody measured."""
    try:
        return float(json.loads(place(name, locations).read_text())[number_format])
    except (OSError, ValueError, KeyError, TypeError):
        return None
