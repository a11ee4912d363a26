"""The user's command as a process: its variables, its output to two places, signals passed on to it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from job.exit_status import UserError

OURS = str(Path(__file__).resolve().parents[2])  # the folder that PYTHONPATH names for this process

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# A shell passes nothing on and waits for its child before it looks at a signal: there all of the group gets it,
# as at a terminal. Any other program gets it alone: a trainer that saves needs its data loaders until then.
SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish", "make", "env"}

CHUNK = 1 << 16

LOOK = 1.0  # seconds between two signs of life

# Seconds for the rest of the output once the command has ended: what it left running may hold the pipes open.
REST = 5.0


def variables(environ: Mapping[str, str], run: str, out: Path) -> dict[str, str]:
    """What the command is given: the volumes' variables, its run and OUT_DIR; PYTHONPATH without our packages,
    which must not stand in for the user's own ``model`` or ``job``."""
    found = {name: value for name, value in environ.items() if name != "RUN_LAUNCH"}
    found |= {"RUN_NAME": run, "OUT_DIR": str(out)}
    # A pipe makes Python keep its lines back; in the log of a run that was killed the last ones matter most.
    found.setdefault("PYTHONUNBUFFERED", "1")
    search = [
        path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != OURS
    ]
    found.pop("PYTHONPATH", None)
    if search:
        found["PYTHONPATH"] = os.pathsep.join(search)
    return found


class CommandProcess:
    """The command, started. ``asked`` is the signal that was passed on to it, if any."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        program: str,
        log: IO[bytes],
        alone: bool,
        hold: Callable[[], None] | None,
        data: IO[bytes],
    ) -> None:
        self.process = process
        self.asked: signal.Signals | None = None
        self._is_shell = Path(program).name in SHELLS
        self._alone = alone  # in a process group of its own
        self._hold = hold  # called before a signal is passed on; it may wait for a write to end
        self._log, self._lock = log, threading.Lock()
        self._begun: dict[IO[bytes], bytes] = {}  # of each pipe, the line that has no end yet
        assert process.stdout is not None
        assert process.stderr is not None
        self._copiers = [
            threading.Thread(target=self._copy, args=(pipe, stream), daemon=True)
            for pipe, stream in ((process.stdout, data), (process.stderr, sys.stderr.buffer))
        ]
        for copier in self._copiers:
            copier.start()

    def ask(self, which: signal.Signals) -> None:
        """Pass the first signal of its kind on."""
        if self.asked is which:
            return  # ours comes back where the whole group got it
        self.asked = which
        if self._hold is not None:
            self._hold()
        if self._is_shell:
            os.killpg(self.process.pid if self._alone else os.getpgrp(), which)
        else:
            self.process.send_signal(which)

    def wait(self, is_alive: Callable[[], None]) -> int:
        """Its exit status, 128 + n for signal n, once all is written that it printed."""
        while True:
            try:
                code = self.process.wait(LOOK)
                break
            except subprocess.TimeoutExpired:
                self._log_begun_lines()
                is_alive()
        for copier in self._copiers:
            copier.join(REST)
        self._log_begun_lines()
        with self._lock:
            self._log.close()
        return code if code >= 0 else 128 - code

    def _copy(self, pipe: IO[bytes], stream: IO[bytes]) -> None:
        while chunk := os.read(pipe.fileno(), CHUNK):
            self._log_whole_lines(pipe, chunk)
            try:
                stream.write(chunk)
                stream.flush()
            except (OSError, ValueError):
                continue  # nobody reads any more, and the command must not die of it

    def _log_whole_lines(self, pipe: IO[bytes], chunk: bytes) -> None:
        """A line comes in pieces (an unbuffered Python writes its end by itself), and between two of them the
        other pipe may speak."""
        with self._lock:
            text = self._begun.pop(pipe, b"") + chunk
            end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
            if not self._log.closed:
                self._log.write(text[:end])
            self._begun[pipe] = text[end:]

    def _log_begun_lines(self) -> None:
        """What stands for LOOK seconds without an end, such as a row of dots, goes into the log as it is."""
        with self._lock:
            for begun in self._begun.values():
                self._log.write(begun)
            self._begun.clear()


def catch_signals() -> list[signal.Signals]:
    """From here on SIGINT and SIGTERM are the command's; what comes before it runs is in the list."""
    early: list[signal.Signals] = []
    for which in SIGNALS:
        signal.signal(which, lambda number, _: early.append(signal.Signals(number)))
    return early


def start(
    command: Sequence[str],
    folder: Path,
    run: str,
    out: Path,
    early: list[signal.Signals],
    hold: Callable[[], None] | None = None,
    data: IO[bytes] | None = None,
) -> CommandProcess:
    """Start it; ``early`` is what ``catch_signals`` gave, ``data`` is where its stdout goes on to, by default ours.
    Raises UserError where there is no such program."""
    given = variables(os.environ, run, out)
    # At a terminal Ctrl-C reaches every process of the group; the command shall have it once, from us.
    alone = sys.stdin is not None and sys.stdin.isatty()
    log = (out / "log.txt").open("ab", buffering=0)
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=given,
            stdin=subprocess.DEVNULL if alone else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0 if alone else None,
        )
    except OSError as error:
        log.close()
        raise UserError(_why_not(command[0], folder, given, error)) from None
    made = CommandProcess(process, command[0], log, alone, hold, data or sys.stdout.buffer)

    def pass_on(number: int, frame: FrameType | None) -> None:
        made.ask(signal.Signals(number))

    for which in SIGNALS:
        signal.signal(which, pass_on)
    for which in early:
        made.ask(which)
    return made


def _why_not(program: str, folder: Path, given: Mapping[str, str], error: OSError) -> str:
    if (folder / program).is_file() and "/" not in program:
        return f"there is no program {program}, but a file; write ./{program} or python {program}"
    if "/" not in program and shutil.which(program, path=given.get("PATH")) is None:
        return f"there is no program '{program}' here; --setup installs what the image lacks"
    return f"{program} can't be started in {folder}: {error.strerror}"
