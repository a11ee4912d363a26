"""Run any command as a job: process, persisted paths, checkpoint backup, resume arguments."""

import sys


def report(text: str) -> None:
    """Print a message between the lines of the command's output."""
    print(f"runner: {text}", file=sys.stderr, flush=True)
