"""The user's command as a process: environment, output, and signals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from job.exit_status import UserError

OUR_PATH = str(Path(__file__).resolve().parents[2])  # in this process's PYTHONPATH

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# A shell forwards no signal and waits for its child first, so its whole process group gets the
# signal, as at a terminal. Any other program gets it alone: a trainer that saves still needs its
# data loaders.
SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish", "make", "env"}

CHUNK_BYTES = 1 << 16

POLL_INTERVAL_S = 1.0

# For the rest of the output once the command ended: its child processes may hold the pipes open.
DRAIN_TIMEOUT_S = 5.0

Watch = Callable[[object, bytes], None]  # of a pipe and a chunk of its output


def variables(environ: Mapping[str, str], run: str, out: Path) -> dict[str, str]:
    """Return the command's environment: the volumes, its run and OUT_DIR.

    PYTHONPATH loses our packages, which must not shadow the user's own ``model`` or ``job``.
    """
    environment = {name: value for name, value in environ.items() if name != "RUN_LAUNCH"}
    environment |= {"RUN_NAME": run, "OUT_DIR": str(out)}
    # Python buffers lines for a pipe, but the last lines of a killed run matter most.
    environment.setdefault("PYTHONUNBUFFERED", "1")
    search = [
        path
        for path in environ.get("PYTHONPATH", "").split(os.pathsep)
        if path and path != OUR_PATH
    ]
    environment.pop("PYTHONPATH", None)
    if search:
        environment["PYTHONPATH"] = os.pathsep.join(search)
    return environment


class CommandProcess:
    """The started command. ``forwarded`` is the signal that was forwarded to it, if any."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        environ: Mapping[str, str],
        logs: Path,
        early: list[signal.Signals],
        hold: Callable[[], None] | None,
        data: IO[bytes],
        watch: Watch,
    ) -> None:
        """Start the command; its output is also appended to log.txt in the folder ``logs``.

        ``early`` is the list from ``catch_signals``; ``data`` receives its stdout, and ``watch``
        each chunk of its output; ``hold`` is called before a signal is forwarded, and may wait for
        a write. Raises UserError if the program does not exist.
        """
        self.forwarded: signal.Signals | None = None
        self._is_shell = Path(command[0]).name in SHELLS
        # At a terminal, Ctrl-C reaches every process of the group; the command must get it once,
        # from us.
        self._has_own_group = sys.stdin is not None and sys.stdin.isatty()
        self._hold, self._watch = hold, watch
        self._lock = threading.Lock()
        self._partial_lines: dict[IO[bytes], bytes] = {}  # per pipe, the incomplete line
        self._log = (logs / "log.txt").open("ab", buffering=0)
        try:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL if self._has_own_group else None,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=0 if self._has_own_group else None,
            )
        except OSError as error:
            self._log.close()
            raise UserError(start_error(command[0], folder, environ, error)) from None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        streams = ((self.process.stdout, data), (self.process.stderr, sys.stderr.buffer))
        self._copiers = [
            threading.Thread(target=self._copy, args=pair, daemon=True) for pair in streams
        ]
        for copier in self._copiers:
            copier.start()
        for signum in SIGNALS:
            signal.signal(signum, lambda number, _: self.forward(signal.Signals(number)))
        for signum in early:
            self.forward(signum)

    def forward(self, signum: signal.Signals) -> None:
        """Forward the first signal of each kind."""
        if self.forwarded is signum:
            return  # our own signal, if the whole group got it
        self.forwarded = signum
        if self._hold is not None:
            self._hold()
        if self._is_shell:
            os.killpg(self.process.pid if self._has_own_group else os.getpgrp(), signum)
        else:
            self.process.send_signal(signum)

    def wait(self, is_alive: Callable[[], None]) -> int:
        """Return its exit status, 128 + n for signal n, once all its output is written."""
        while True:
            try:
                code = self.process.wait(POLL_INTERVAL_S)
                break
            except subprocess.TimeoutExpired:
                self._log_partial_lines()
                is_alive()
        for copier in self._copiers:
            copier.join(DRAIN_TIMEOUT_S)
        self._log_partial_lines()
        with self._lock:
            self._log.close()
        return code if code >= 0 else 128 - code

    def _copy(self, pipe: IO[bytes], stream: IO[bytes]) -> None:
        while chunk := os.read(pipe.fileno(), CHUNK_BYTES):
            self._log_complete_lines(pipe, chunk)
            self._watch(pipe, chunk)
            try:
                stream.write(chunk)
                stream.flush()
            except (OSError, ValueError):
                continue  # the reader is gone; the command must not fail

    def _log_complete_lines(self, pipe: IO[bytes], chunk: bytes) -> None:
        """Log complete lines: one arrives in pieces, and the other pipe may write in between."""
        with self._lock:
            text = self._partial_lines.pop(pipe, b"") + chunk
            end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
            self._append(text[:end])
            self._partial_lines[pipe] = text[end:]

    def _log_partial_lines(self) -> None:
        """Log incomplete lines, such as a row of dots, after POLL_INTERVAL_S."""
        with self._lock:
            for line in self._partial_lines.values():
                self._append(line)
            self._partial_lines.clear()

    def _append(self, text: bytes) -> None:
        # A full disk must neither end the command nor close its pipe.
        with suppress(OSError, ValueError):  # ValueError: the log is closed
            self._log.write(text)


def catch_signals() -> list[signal.Signals]:
    """Collect SIGINT and SIGTERM from now on; the list is forwarded once the command runs."""
    early: list[signal.Signals] = []
    for signum in SIGNALS:
        signal.signal(signum, lambda number, _: early.append(signal.Signals(number)))
    return early


def start_error(program: str, folder: Path, environ: Mapping[str, str], error: OSError) -> str:
    """Return why the program could not be started."""
    missing = missing_program(program, folder, environ.get("PATH"))
    return missing or f"{program} can't be started in {folder}: {error.strerror}"


def missing_program(program: str, folder: Path, path: str | None) -> str:
    """Return the error for a program's name that is not in ``path``; '' for a path."""
    if "/" in program or shutil.which(program, path=path) is not None:
        return ""
    if (folder / program).is_file():
        return (
            f"program {program} not found, but there is a file; use ./{program} or python {program}"
        )
    return f"program '{program}' not found; check its name, or install it (in an image: --setup)"
