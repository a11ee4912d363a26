"""Run a job, and send a notification if the job ends without one: it was killed, for example.

    python -m job.report_end RUN COMMAND [WORD ...]

A job reports its own end (job/run_session.py), unless it is killed or fails before its record
starts. Signals are passed on. Standard library only.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from job.exit_status import ExitStatus
from job.notify import VARIABLE, Notifier
from job.paths import VolumePaths
from job.run_record import read_record

FORWARDED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}


def main() -> int:
    """Run the command and return its exit status, 128 + n after signal n."""
    run, *command = sys.argv[1:]
    if VARIABLE not in os.environ:
        os.execvp(command[0], command)
    started, folder = time.time(), VolumePaths.current().run(run)
    code = _run(command)
    if code and not _has_reported(folder, started):
        message = Notifier(run, folder).send(_event(code))
        if message is not None and (problem := message.wait()):
            print(problem, file=sys.stderr, flush=True)
    return 128 - code if code < 0 else code


def _run(command: list[str]) -> int:
    """Run the command; return its exit status, -n after signal n."""
    awaited = FORWARDED | {signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # until sigwait, so that none is lost
    process = os.posix_spawnp(command[0], command, os.environ, setsigmask=())
    while True:
        which = signal.sigwait(awaited)
        if which != signal.SIGCHLD:
            os.kill(process, which)
            continue
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)


def _has_reported(folder: Path, started: float) -> bool:
    """Return True if the run's record has the end of an attempt that began after ``started``."""
    record = read_record(folder)
    newest = record.attempts[-1] if record is not None and record.attempts else None
    return newest is not None and newest.started >= started and newest.ended is not None


def _event(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    if code == ExitStatus.UNFINISHED:
        return "stopped before it started to train"
    return f"failed with exit status {code}"


if __name__ == "__main__":
    sys.exit(main())
