"""Start a measured process, wait for its end or a condition, and never leave it running."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.results import Results
from job.exit_status import UserError

POLL_INTERVAL_S = 0.05
SHOWN_OUTPUT_CHARS = 1500


class RunFailed(Exception):
    """A measured process failed. The message holds the reason and the end of its output."""

    def __init__(self, reason: str, output: str = "") -> None:
        super().__init__(reason + ("\n" + output[-SHOWN_OUTPUT_CHARS:] if output else ""))
        self.out_of_memory = "out of memory" in output.lower() or "OutOfMemoryError" in output


def run_until(
    command: list[str],
    cwd: Path,
    environ: Mapping[str, str],
    log: Path,
    timeout: float,
    is_done: Callable[[], bool] = lambda: False,
) -> float:
    """Run ``command`` to its end, or kill it once ``is_done()``; return its wall seconds.

    Its output goes to ``log``. Raises RunFailed if it fails or takes longer than ``timeout``.
    """
    started = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **environ, "PYTHONUNBUFFERED": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # to kill the process and its compilers together
        )
        try:
            while process.poll() is None and not is_done():
                if time.perf_counter() - started > timeout:
                    output = log.read_text(errors="replace")
                    raise RunFailed(f"{log.stem}: still running after {timeout:.0f} s", output)
                time.sleep(POLL_INTERVAL_S)
            seconds = time.perf_counter() - started
        finally:
            status = process.poll()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status not in (None, 0):
        raise RunFailed(f"{log.stem}: exit status {status}", log.read_text(errors="replace"))
    return seconds


FAILURES = (RunFailed, UserError, OSError, ValueError, LookupError, RuntimeError)


@contextmanager
def record_failure(results: Results, **what: object) -> Iterator[None]:
    """Turn an error of the block into a `failed` result, so that the other parts still run."""
    try:
        yield
    except FAILURES as error:
        results.add("failed", **what, why=f"{type(error).__name__}: {error}")
