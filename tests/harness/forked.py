"""Run commands in forks of this process, which has imported them: 0.05 s a command.

command = run(["runner", "status", "--json"], folder)
command.fault()     # "" unless it broke a promise: no traceback, one clear line, 10 s
"""

from __future__ import annotations

import gc
import os
import re
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO

from job.exit_status import ExitStatus
from job.paths import CHECKOUT, VolumePaths

CPU_LIMIT_S = 10.0  # CPU time: a busy machine must not look like a hang
HANG_S = 300.0  # wall clock
MAX_MESSAGE_CHARACTERS = 1500
PRELOADED = ("model.train", "serving.sample", "serving.evaluate", "serving.export")
PRELOADED += ("corpus.prepare",)
PRELOADED += ("experiment.run", "job.user_command.supervisor", "job.health", "runner.cli", "rich")
PRELOADED += ("torch.utils.tensorboard", "safetensors.torch", "tiktoken", "yaml")
PRELOADED += ("tensorboard.compat.proto.event_pb2", "tensorboard.summary.writer.record_writer")
# Imported on demand, so each fork would read them from disk.
PRELOADED += ("pyarrow.parquet", "plotext", "rich.table", "rich.progress", "dotenv.parser")
# Also the crash messages of Rust and C libraries.
CRASHES = (
    "Traceback (most recent call last)",
    "bug in the runner",
    "panicked at",
    "Fatal Python",
)


@dataclass(frozen=True)
class CommandResult:
    """A command that has ended."""

    command: Sequence[str]
    status: int  # negative for a signal
    out: str
    err: str
    seconds: float
    cpu_seconds: float

    def fault(
        self, allowed: Sequence[int] = tuple(ExitStatus), cpu_limit: float = CPU_LIMIT_S
    ) -> str:
        """Describe the broken promise; "" if there is none."""
        for crash in CRASHES:
            if crash in self.out + self.err:
                return f"{crash}: {self.tail()}"
        if self.status == -signal.SIGKILL or self.cpu_seconds > cpu_limit:
            return f"{self.seconds:.1f} s, {self.cpu_seconds:.1f} of CPU: {self.tail()}"
        if self.status not in allowed:
            return f"exit status {self.status}: {self.tail()}"
        is_table = list(self.command[:2]) == ["runner", "doctor"] or "job.health" in self.command
        if self.status in (1, 2, 100) and not is_table:
            return self._unclear()
        return ""

    def _unclear(self) -> str:
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        usage = "usage: " in self.err  # argparse prints the usage before its one line
        if usage and not errors:
            errors = [line for line in self.err.splitlines() if ": error: " in line]
        if len(errors) != 1:
            return f"exit status {self.status} with {len(errors)} error lines: {self.tail()}"
        if len(errors[0]) > MAX_MESSAGE_CHARACTERS:
            return f"an error of {len(errors[0])} characters: {errors[0][:200]}"
        if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", errors[0]):
            return f"control characters in {errors[0]!r}"
        return ""

    def tail(self) -> str:
        """Return the end of the messages."""
        return (self.err or self.out)[-1200:]


@cache
def preload() -> None:
    """Import what the commands need, so that each fork has it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for module in PRELOADED:
        import_module(module)
    for path in (CHECKOUT / "runner" / "commands").glob("*.py"):
        import_module(f"runner.commands.{path.stem}")
    for path in (CHECKOUT / "runner" / "targets").glob("*.py"):
        import_module(f"runner.targets.{path.stem}")
    gc.collect()
    gc.freeze()  # else each fork's collection copies every page


def run(
    command: Sequence[str],
    folder: Path,
    variables: Mapping[str, str] | None = None,
    *,
    limit: float = HANG_S,
    before: Callable[[], object] = lambda: None,
) -> CommandResult:
    """Run ``runner ...`` or ``MODULE ...`` in ``folder``, whose volumes it uses.

    ``before`` is called in the fork. After ``limit`` seconds the fork and its children are killed.
    """
    preload()
    environment = {**os.environ, **VolumePaths.under(folder).environment(), **(variables or {})}
    streams = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.monotonic()
    process = os.fork()
    if process == 0:
        _run_in_fork(command, folder, environment, streams, before)
    status, cpu_seconds = _wait(process, started + limit)
    seconds = time.monotonic() - started
    texts = []
    for stream in streams:
        with stream:
            stream.seek(0)
            texts.append(stream.read(1 << 20).decode(errors="replace"))
    return CommandResult(command, status, texts[0], texts[1], seconds, cpu_seconds)


def _wait(process: int, deadline: float) -> tuple[int, float]:
    """Return status and CPU time of the fork; kill its process group at the deadline."""
    descriptor = os.pidfd_open(process)
    remaining = max(0.0, deadline - time.monotonic())
    if not select.select([descriptor], [], [], remaining)[0]:
        os.killpg(process, signal.SIGKILL)
    os.close(descriptor)
    _, status, usage = os.wait4(process, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def _run_in_fork(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    streams: Sequence[IO[bytes]],
    before: Callable[[], object],
) -> None:
    """Run the command and end this fork as the interpreter would."""
    status: object = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        for number, descriptor in enumerate([null, *(stream.fileno() for stream in streams)]):
            os.dup2(descriptor, number)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  # pytest replaced all three
        sys.stdout = open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        module, *words = command
        sys.argv = [module, *words]
        main = import_module("runner.cli" if module == "runner" else module).main
        before()
        status = main(words) if words else main()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                status = 120  # as Python does
        os._exit(status if isinstance(status, int) else 0 if status is None else 1)
