"""Run a script unchanged, then print the peak memory of the process.

    python peak_memory.py SCRIPT [ARGUMENTS ...]

For trainers that do not report it themselves. Imports torch only if the script did.
"""

from __future__ import annotations

import resource
import runpy
import sys

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path[0] = "."
    runpy.run_path(sys.argv[0], run_name="__main__")
    torch = sys.modules.get("torch")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch is not None and torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    print(f"peak memory {peak}", flush=True)
