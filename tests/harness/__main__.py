"""A short run of every harness in one process: python -m tests.harness"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

from tests.harness import damaged, disk_faults, recipes


def main() -> int:
    """Print every fault; return 1 if there was one."""
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name, part) for part in ("recipes", "random", "damaged", "disk")]
        for folder in folders:
            folder.mkdir()
        rng = random.Random(1)
        resume = [each for each in disk_faults.SCENARIOS if each.name == "resume"]
        found = [
            *recipes.faults(folders[0], 12, rng),
            *recipes.training_faults(folders[1], 2, rng),
            *damaged.faults(folders[2], 2, rng, quick=True),
            *disk_faults.faults(folders[3], 3, rng, resume),
        ]
    print("\n".join(filter(None, found)))
    return 1 if any(found) else 0


if __name__ == "__main__":
    disk_faults.restart_with_shim("tests.harness")
    sys.exit(main())
