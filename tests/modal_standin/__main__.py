"""Start the stand-in and run a command against it, or serve until interrupted.

    python -m tests.modal_standin [--state DIR] [--port N] [--grace SECONDS] -- COMMAND...

Exits with the command's status. Without a command, prints the exports on stdout.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from .standin import ModalStandin


def main(arguments: list[str]) -> int:
    own, command = arguments, []
    if "--" in arguments:
        split = arguments.index("--")
        own, command = arguments[:split], arguments[split + 1 :]
    parser = argparse.ArgumentParser(prog="python -m tests.modal_standin", description=__doc__)
    parser.add_argument("--state", type=Path, help="where volumes, logs and requests are kept")
    parser.add_argument(
        "--port", type=int, default=0, help="of the gRPC server (default: any free one)"
    )
    parser.add_argument(
        "--grace", type=float, default=30.0, help="seconds between SIGINT and SIGKILL"
    )
    parser.add_argument(
        "--strict-commits", action="store_true", help="only a commit writes to a volume"
    )
    options = parser.parse_args(own)
    if options.state is not None:
        return run(options.state, command, options)
    with tempfile.TemporaryDirectory(prefix="modal-standin-") as folder:
        return run(Path(folder), command, options)


def run(state: Path, command: list[str], options: argparse.Namespace) -> int:
    settings = {
        "port": options.port,
        "grace": options.grace,
        "strict_commits": options.strict_commits,
    }
    with ModalStandin(state, **settings) as modal:
        if command:
            return run_command(command, {**os.environ, **modal.environ})
        for name, value in modal.environ.items():
            print(f"export {name}={shlex.quote(value)}", flush=True)
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        ended.wait()
    return 0


def run_command(command: list[str], environ: dict[str, str]) -> int:
    """Run a command and return its status, or 128 + n if signal n ended it. It handles Ctrl-C."""
    process = subprocess.Popen(command, env=environ)
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
