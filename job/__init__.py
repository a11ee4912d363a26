"""The contract between the runner and the code inside a job. Imports no torch."""

import os

# OpenMP's threads spin while they wait for each other, and torch's small operations make them wait
# thousands of times a second. A process that gets busy on one of two cores then slows training down
# by a factor of 5 to 46; a shorter spin limits that (docs/benchmarks.md). If the spin is too short,
# two threads are as slow as one: with 1000, 12,100 tokens per second instead of 19,700.
# libgomp reads the variable when torch loads it, so this runs before any `import torch`: in every
# trainer, in the runner and in the supervisor of a user's command, whose children inherit it.
GOMP_SPINCOUNT = "20000"
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", GOMP_SPINCOUNT)
