"""What stands between a detached job of the host and nobody: it passes signals on and notes the exit status.

    python -m runner.detached RUN_FOLDER COMMAND [ARGUMENT ...]

Without it, a job that died before it had a record could not be told from one that ended well.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from runner.runs.store import note_exit


def main() -> int:
    """Run the command, wait for it and write its exit status into the folder."""
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    ended_by: list[int] = []
    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, lambda number, _: ended_by.append(number))
    process = subprocess.Popen(command)
    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, lambda number, _: process.send_signal(number))
    for number in ended_by:  # came before there was a process to pass it to
        process.send_signal(number)
    code = process.wait()
    note_exit(folder, code if code >= 0 else 128 - code)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
