"""`runner watch`: the loop of polls, keys and screen.

A thread polls the run, so the screen reacts to keys while a connection hangs. An unreachable target
is polled until it answers: a laptop may sleep, a network may fail.
"""

from __future__ import annotations

import os
import queue
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from job.exit_status import ExitStatus
from job.format import json_text, one_line
from job.run_record import EndReason, RunStatus
from runner.console import CliContext
from runner.errors import NoSuchRun, RunnerError
from runner.jobs import RESUMABLE_JOBS
from runner.project import find_checkout
from runner.runs.find import ResolvedRun
from runner.runs.history import History, HistoryReader, run_removed
from runner.runs.table import limit_message, resume_message, status_text
from runner.signals import SignalForwarder
from runner.target import RunSource, Target, all_targets
from runner.views.dashboard import Snapshot, format_line, screen, to_json

MAX_RETRY_INTERVAL_S = 5.0

# A longer poll hangs on a connection that died unnoticed, for example in sleep; a new one starts.
POLL_TIMEOUT_S = 60.0

SLOW_POLL_S = 10.0  # after which the screen says that it waits

Clock = Callable[[], float]  # seconds since the epoch: it also counts time asleep


class RunPoller:
    """Polls a run every ``interval_s`` seconds; ``first`` is its first state.

    If its target no longer has the run, ``find_again`` returns the target on which it was
    resumed, or raises NoSuchRun.
    """

    def __init__(
        self,
        reader: HistoryReader,
        first: History,
        interval_s: float,
        find_again: Callable[[], RunSource],
        clock: Clock = time.time,
    ) -> None:
        self.run, self.source = reader.run, reader.source
        self.interval_s = interval_s
        self.find_again = find_again
        self.clock = clock
        self._snapshot = Snapshot(first, has_ended=has_ended(first))
        self._read_at = self.clock()  # the last poll that succeeded
        self._answered_at = self.clock()  # the last poll that succeeded or failed
        self._results: queue.SimpleQueue[tuple[int, History | Exception]] = queue.SimpleQueue()
        self._generation = 0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        if not self._snapshot.has_ended:
            self._start(reader)

    def newest(self) -> Snapshot:
        """Return the newest snapshot. Raises NoSuchRun."""
        while True:
            try:
                generation, result = self._results.get_nowait()
            except queue.Empty:
                break
            if generation != self._generation:
                continue
            self._answered_at = self.clock()
            if isinstance(result, NoSuchRun):
                raise result
            if isinstance(result, Exception):
                self._snapshot = replace(self._snapshot, error=describe(result))
            else:
                self._read_at = self._answered_at
                self._snapshot = Snapshot(result, has_ended=has_ended(result))
        if self._snapshot.has_ended:
            return self._snapshot
        now = self.clock()
        silent_s = now - self._answered_at
        if silent_s > SLOW_POLL_S + self.interval_s and not self._snapshot.error:
            self._snapshot = replace(self._snapshot, error="waiting for a response")
        if silent_s > POLL_TIMEOUT_S + self.interval_s:
            self._answered_at = now
            self._start(HistoryReader(self.run, self.source))
        return replace(self._snapshot, age=now - self._read_at)

    def stop(self, timeout_s: float) -> bool:
        """Stop polling; return False if the last poll does not end within ``timeout_s``."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    def _start(self, reader: HistoryReader) -> None:
        self._generation += 1
        self._thread = threading.Thread(
            target=self._poll, args=(reader, self._generation), daemon=True
        )
        self._thread.start()

    def _poll(self, reader: HistoryReader, generation: int) -> None:
        pause = self.interval_s if self._snapshot.history.is_complete else 0.0
        while not self._stopped.wait(pause) and generation == self._generation:
            try:
                history = reader.poll()
                if history is None:
                    reader = HistoryReader(self.run, self.find_again())
                    self.source = reader.source
                    continue
            except Exception as error:  # a network can raise anything; the screen shows it
                self._results.put((generation, error))
                if isinstance(error, NoSuchRun):
                    return
                pause = min(max(pause, self.interval_s) * 2, MAX_RETRY_INTERVAL_S)
                continue
            self._results.put((generation, history))
            if has_ended(history):
                return
            pause = self.interval_s if history.is_complete else 0.0


def has_ended(history: History) -> bool:
    """Return True if the run has ended and everything was read."""
    return not history.state.alive and history.is_complete


def describe(error: Exception) -> str:
    """Return the error as one line."""
    if isinstance(error, RunnerError):
        return error.message
    if isinstance(error, OSError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


TICK_S = 0.2  # within which a key, a new terminal size and a new poll take effect

LINE_INTERVAL_S = 10.0  # between lines when not on a terminal

STOP_TIMEOUT_S = 1.0  # for a poll in progress when the user quits

EXIT_STATUS = {
    RunStatus.FINISHED: ExitStatus.DONE,
    RunStatus.UNFINISHED: ExitStatus.UNFINISHED,
    RunStatus.LOST: ExitStatus.UNFINISHED,  # it can be resumed from its checkpoint
}


def watch(cli: CliContext, resolved: ResolvedRun, interval_s: float | None, as_json: bool) -> int:
    """Show the run until it ends or the user quits; return the exit status."""
    run = resolved.state.run
    on_terminal = cli.is_terminal and not as_json and cli.environ.get("TERM") != "dumb"
    if interval_s is None:
        interval_s = (
            max(1.0, 2 * resolved.source.poll_interval_s) if on_terminal else LINE_INTERVAL_S
        )
    reader = HistoryReader(run, resolved.source)
    first = reader.poll()
    if first is None:
        raise run_removed(run)
    signals: list[object] = []
    poller = RunPoller(reader, first, interval_s, lambda: _find_again(cli, run))
    with SignalForwarder(signals.append, lambda: signals.append(None)):
        if on_terminal:
            snapshot = _watch_on_screen(cli, poller, lambda: bool(signals))
        else:
            snapshot = _watch_in_lines(cli, poller, lambda: bool(signals), interval_s, as_json)
    status = _report_end(cli, snapshot)
    if not poller.stop(STOP_TIMEOUT_S):
        # The poll hangs on a connection, and would delay the end of this process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(status))
    return int(status)


def _watch_on_screen(cli: CliContext, poller: RunPoller, has_quit: Callable[[], bool]) -> Snapshot:
    from rich.live import Live

    console = cli.console()
    drawn: tuple[object, ...] = ()
    with Keyboard() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            snapshot = poller.newest()
            now, size = time.time(), console.size
            content = (snapshot.history, snapshot.error, int(now), size)
            if content != drawn:
                live.update(screen(snapshot, now, size.width, size.height), refresh=True)
                drawn = content
            if snapshot.has_ended or has_quit() or keyboard.wait(TICK_S) in ("q", "Q"):
                break
    last = replace(snapshot, has_ended=True)
    console.print(screen(last, time.time(), console.width, min(console.height, 30)))
    return snapshot


def _watch_in_lines(
    cli: CliContext,
    poller: RunPoller,
    has_quit: Callable[[], bool],
    interval_s: float,
    as_json: bool,
) -> Snapshot:
    printed_at: float | None = None
    while True:
        snapshot = poller.newest()
        now = time.monotonic()
        if snapshot.has_ended or printed_at is None or now - printed_at >= interval_s:
            cli.write(json_text(to_json(snapshot)) if as_json else format_line(snapshot))
            sys.stdout.flush()
            printed_at = now
        if snapshot.has_ended or has_quit():
            return snapshot
        time.sleep(TICK_S)


def _report_end(cli: CliContext, snapshot: Snapshot) -> ExitStatus:
    state = snapshot.history.state
    run = one_line(state.run)
    if not snapshot.has_ended:
        cli.info(f"run '{run}' continues; `runner watch {run}` shows it again")
        return ExitStatus.INTERRUPTED
    status = status_text(state)
    # A copy of an active run has not ended: "was running 2h ago".
    cli.info(f"run '{run}' {'ended:' if status == state.status else 'was'} {status}")
    if limit := limit_message(run, state.unfinished_reason):
        cli.info(limit)
        if state.unfinished_reason == EndReason.BUDGET:
            return ExitStatus.OVER_BUDGET
        return ExitStatus.UNFINISHED
    if state.status != RunStatus.FINISHED and state.job in RESUMABLE_JOBS:
        cli.info(resume_message(run, state.job))
    return EXIT_STATUS.get(state.status, ExitStatus.JOB_FAILED)


def _find_again(cli: CliContext, run: str) -> Target:
    """Return the target that has the run now.

    Raises NoSuchRun; RunnerError if a target that may have it is unreachable.
    """
    unreachable: RunnerError | None = None
    for target in all_targets(cli, find_checkout(cli.cwd)):
        try:
            if target.state(run) is not None:
                return target
        except RunnerError as error:
            unreachable = error
    raise unreachable or run_removed(run)


class Keyboard:
    """Reads single keys while entered."""

    def __init__(self) -> None:
        self._mode: list[Any] | None = None

    def __enter__(self) -> Keyboard:
        try:
            self._mode = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)  # Ctrl-C is still a signal
        except (termios.error, OSError, ValueError):  # not a terminal
            self._mode = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._mode is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._mode)

    def wait(self, timeout_s: float) -> str:
        """Return the key pressed within ``timeout_s``; '' without one."""
        if self._mode is None:
            time.sleep(timeout_s)
            return ""
        ready, _, _ = select.select([sys.stdin], [], [], timeout_s)
        if not ready:
            return ""
        key = os.read(sys.stdin.fileno(), 1).decode(errors="replace")
        if not key:  # a terminal that is closed would be ready forever
            self._mode = None
        return key
