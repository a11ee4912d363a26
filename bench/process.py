"""A contender is a process: started, watched until a condition holds, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.results import Results

LOOK_SECONDS = 0.05


class Failed(Exception):
    """A contender did not do its part; the text says which and why, with the end of what it printed."""

    def __init__(self, why: str, output: str = "") -> None:
        super().__init__(why + ("\n" + output[-1500:] if output else ""))
        self.out_of_memory = "out of memory" in output.lower() or "OutOfMemoryError" in output


def watch(
    command: list[str],
    cwd: Path,
    environ: Mapping[str, str],
    log: Path,
    seconds: float,
    until: Callable[[], bool] = lambda: False,
) -> float:
    """Run ``command`` to its end, or kill it as soon as ``until`` holds; its wall seconds.

    What it prints goes to ``log``. Failed where it ends badly or takes more than ``seconds``.
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
            start_new_session=True,  # it and its compilers are killed together
        )
        try:
            while process.poll() is None and not until():
                if time.perf_counter() - started > seconds:
                    raise Failed(
                        f"{log.stem}: not done after {seconds:.0f} s",
                        log.read_text(errors="replace"),
                    )
                time.sleep(LOOK_SECONDS)
            spent = time.perf_counter() - started
        finally:
            ended = process.poll()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if ended not in (None, 0):
        raise Failed(f"{log.stem}: ended with {ended}", log.read_text(errors="replace"))
    return spent


@contextmanager
def guarded(results: Results, **what: object) -> Iterator[None]:
    """What fails inside becomes a result of its own, and the rest goes on."""
    try:
        yield
    except (Failed, OSError, ValueError, KeyError, IndexError) as error:
        results.add("failed", **what, why=f"{type(error).__name__}: {error}")
