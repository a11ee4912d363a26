"""Follow a call from this terminal: its output, its end, and Ctrl-C.

The app is detached: the run continues however this process ends.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from job.exit_status import ExitStatus
from runner.errors import ModalUnavailable
from runner.jobs import RESUMABLE_JOBS
from runner.runs import endings
from runner.signals import SignalForwarder
from runner.target import LaunchHandle
from runner.targets.modal import calls
from runner.targets.modal.calls import CANCELLED, CallState, Cancelled, CancelScope
from runner.targets.modal.runs import recorded_status

if TYPE_CHECKING:
    from runner.targets.modal.target import ModalTarget

INTERRUPT_POLL_S = 0.1
CALL_POLL_S = 30.0  # the longest time that Modal holds back its answer
STARTING_HINT_S = 8.0  # without output, Modal's own lines included

# Waiting for the last lines after the end: at most, and since the last line.
LOG_TIMEOUT_S, LOG_QUIET_S = 10.0, 2.0

MAX_DOUBTFUL_ANSWERS = 12  # a minute, while the run's record has no end


def follow(target: ModalTarget, handle: LaunchHandle) -> int | None:
    """Print the job's output until it ends; return its exit status, None if the user left."""
    screen = threading.Lock()  # held while a question is asked, so that no output runs over it
    with CancelScope() as scope:
        printer = _Printer(handle.location, screen, scope)
        printer.start()
        waiter = _Waiter(target, handle, printer.ended, scope)
        waiter.start()
        if not _wait(target, handle, printer, screen):
            return None
        printer.finish()
    return _exit_status(target, handle, waiter.state)


def _wait(
    target: ModalTarget, handle: LaunchHandle, printer: _Printer, screen: threading.Lock
) -> bool:
    """Wait for the end. Return False if the user left, after saying that the run continues."""
    received: list[signal.Signals] = []
    again = threading.Event()
    is_stopping, is_hinted = False, False
    started = time.monotonic()
    with SignalForwarder(received.append, again.set):
        while not printer.ended.wait(INTERRUPT_POLL_S):
            is_quiet = not printer.printed_at and time.monotonic() - started >= STARTING_HINT_S
            if is_quiet and not (is_hinted or received):
                is_hinted = True
                target.cli.info("started on Modal; waiting for a machine")
            if again.is_set():
                with screen:
                    printer.is_muted = True
                target.cli.info(f"detached; the run is still stopping. {_hint(handle.run)}")
                return False
            if received and not is_stopping:
                with screen:
                    is_stopping = _confirm_stop(target, handle, received[0])
                    printer.is_muted = not is_stopping
                if not is_stopping:
                    target.cli.info(f"detached; the run continues. {_hint(handle.run)}")
                    return False
                target.cli.info(
                    "stopping: the job writes its checkpoint; press Ctrl-C again to leave it"
                )
                target.request_stop(handle)
    return True


def _confirm_stop(target: ModalTarget, handle: LaunchHandle, which: signal.Signals) -> bool:
    """Ask on a terminal. Without one, SIGINT stops the run; SIGTERM and SIGHUP leave it."""
    if which != signal.SIGINT:
        return False
    if not target.cli.is_terminal:
        return True
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return target.cli.ask(f"Stop run '{handle.run}'? (No: it continues without this terminal.)")
    except (click.Abort, KeyboardInterrupt):  # Ctrl-C again: leave
        return False
    finally:
        signal.signal(signal.SIGINT, before)


class _Printer(threading.Thread):
    """Copies the app's output to stdout and stderr. The run continues if the stream fails."""

    def __init__(self, app: str, screen: threading.Lock, scope: CancelScope) -> None:
        super().__init__(daemon=True)
        self.app, self.screen, self.scope = app, screen, scope
        self.ended = threading.Event()  # the call is over
        self.printed_at = 0.0
        self.is_muted = False  # set while the screen is held

    def run(self) -> None:
        try:
            for is_stderr, text in calls.stream_log(self.app, self.ended, self.scope):
                stream = sys.stderr if is_stderr else sys.stdout
                with self.screen:
                    if self.is_muted:
                        return
                    stream.write(text)
                    stream.flush()
                self.printed_at = time.monotonic()
        except Cancelled:
            return
        except Exception as error:
            with suppress(OSError, ValueError):  # stderr may be closed too
                print(f"runner: the log broke off ({error}); the run continues", file=sys.stderr)

    def finish(self) -> None:
        """Wait for the last lines, which arrive after the end of the call."""
        ended = time.monotonic()
        while self.is_alive() and time.monotonic() < min(
            ended + LOG_TIMEOUT_S, max(ended, self.printed_at) + LOG_QUIET_S
        ):
            self.join(INTERRUPT_POLL_S)


class _Waiter(threading.Thread):
    """Waits for the end of the call. If Modal's answer is doubtful, the run's record decides."""

    def __init__(
        self,
        target: ModalTarget,
        handle: LaunchHandle,
        ended: threading.Event,
        scope: CancelScope,
    ) -> None:
        super().__init__(daemon=True)
        self.target, self.handle, self.ended, self.scope = target, handle, ended, scope
        self.call = handle.id
        self.state = CallState(False, error="the call ended without a result")

    def run(self) -> None:
        doubtful = 0
        while True:
            try:
                state = self._poll()
            except Cancelled:
                return
            except ModalUnavailable:
                self.ended.wait(calls.RECONNECT_INTERVAL_S)
                continue
            except Exception as error:
                state = CallState(False, error=str(error), doubtful=True)
            if state.alive:
                doubtful = 0
                continue
            if state.doubtful:
                recorded = self._recorded_end()
                if recorded is None and doubtful < MAX_DOUBTFUL_ANSWERS:
                    doubtful += 1
                    self.ended.wait(calls.RECONNECT_INTERVAL_S)
                    continue
                state = recorded or state
            self.state = state
            self.ended.set()
            return

    def _poll(self) -> CallState:
        if self.call:
            return calls.poll_call(self.call, CALL_POLL_S, self.scope)
        # The client of this launch ended before it recorded the call: the container records it.
        run = self.target.read(self.handle.run)
        if run.app == self.handle.location and run.call:
            self.call = run.call
            return CallState(True)
        if calls.is_app_active(self.handle.location):
            self.ended.wait(calls.RECONNECT_INTERVAL_S)
            return CallState(True)
        return CallState(False, error="the launch was interrupted before its call started")

    def _recorded_end(self) -> CallState | None:
        """Return the end that the run's record has for this call; None while it has none."""
        with suppress(Exception):
            run = self.target.read(self.handle.run)
            status = recorded_status(run, self.call)
            if status is not None:
                return CallState(False, {"status": status, "reason": run.log.reason})
        return None


def _exit_status(target: ModalTarget, handle: LaunchHandle, state: CallState) -> int | None:
    """Return the job's exit status, or None if unknown. Prints why, if the job did not end it."""
    if state.value is not None:
        limit = endings.limit_option(str(state.value.get("reason", "")))
        if limit and handle.job not in RESUMABLE_JOBS:  # `runner resume` continues the others
            target.cli.info(f"stopped: its {limit} is used up; run it again with more")
        return int(state.value.get("status", ExitStatus.ERROR))
    if state.attempts_used_up or state.error == CANCELLED:
        return int(ExitStatus.UNFINISHED)
    if state.doubtful:
        target.cli.info(
            f"Modal does not report the end of the call ({state.error}); "
            f"`runner status {handle.run}` shows what the run recorded"
        )
        return None
    target.cli.info(f"Modal: {state.error}")
    return int(ExitStatus.ERROR)


def _hint(run: str) -> str:
    return f"Follow it with `runner logs {run} --follow`, stop it with `runner stop {run}`"
