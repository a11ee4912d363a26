"""torchrun, without a traceback of its own when a process of the job fails.

python -m job.torchrun --standalone --nproc-per-node=2 -m -- model.train
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run torchrun; return 1 if a process failed, whose own message says why."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(f"process {rank} ended first, with exit status {failure.exitcode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
