"""The contract between the runner and the code inside a job. Imports no torch."""

import os

# OpenMP's threads spin while they wait for each other, and torch's small operations make them wait
# thousands of times a second. With one other busy process on two cores, that slows training down by
# a factor of 5 to 46; a shorter spin keeps at least half of the idle speed (docs/benchmarks.md).
# libgomp reads the variable when torch loads it, so this runs before any `import torch`, in every
# trainer and in what the runner or a user command's supervisor starts.
GOMP_SPINCOUNT = "1000"
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", GOMP_SPINCOUNT)
