"""Follow a call from this terminal: its output, its end, and Ctrl-C; or connect it to a sandbox.

The app is detached: the run continues however this process ends. A sandbox's process gets the
terminal in raw mode.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from job.exit_status import ExitStatus
from runner.console import INTERRUPT_POLL_S
from runner.errors import ModalUnavailable
from runner.jobs import RESUMABLE_JOBS
from runner.runs.table import limit_option
from runner.signals import JobOutput, signal_handler
from runner.target import LaunchHandle
from runner.targets.modal import calls
from runner.targets.modal.calls import CANCELLED, CallState, Cancelled, CancelScope
from runner.targets.modal.runs import recorded_status

if TYPE_CHECKING:
    from runner.targets.modal.target import ModalTarget


CALL_POLL_S = 30.0  # the longest time that Modal holds back its answer
STARTING_HINT_S = 8.0  # without output, Modal's own lines included

# Waiting for the last lines after the end: at most, and since the last line.
LOG_TIMEOUT_S, LOG_QUIET_S = 10.0, 2.0

MAX_UNCERTAIN_ANSWERS = 12  # a minute, while the run's record has no end


def follow(target: ModalTarget, handle: LaunchHandle) -> int | None:
    """Print the job's output until it ends; return its exit status, None if the user left."""
    with CancelScope() as scope:
        printer = _Printer(handle.location, scope)
        printer.start()
        waiter = _Waiter(target, handle, printer.ended, scope)
        waiter.start()
        if not target.cli.wait_for_end(handle.run, printer, lambda _: target.request_stop(handle)):
            # The client's requests end with this process, and asyncio may report each of them.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            return None
        printer.finish()
    return _exit_status(target, handle, waiter.state)


class _Printer(JobOutput):
    """Copies the app's output to stdout and stderr. The run continues if the stream fails."""

    def __init__(self, app: str, scope: CancelScope) -> None:
        super().__init__()
        self.app, self.scope = app, scope
        self.started = time.monotonic()
        self.printed_at = 0.0
        self.is_hinted = False

    def run(self) -> None:
        try:
            for is_stderr, text in calls.stream_log(self.app, self.ended, self.scope):
                stream = sys.stderr if is_stderr else sys.stdout
                with self.screen:
                    if self.has_left:
                        return
                    stream.write(text)
                    stream.flush()
                self.printed_at = time.monotonic()
        except Cancelled:
            return
        except Exception as error:
            with suppress(OSError, ValueError):  # stderr may be closed too
                print(f"runner: the log broke off ({error}); the run continues", file=sys.stderr)

    def state(self, is_interrupted: bool) -> str:
        """Return a message if the job prints nothing for a while after the start."""
        is_quiet = not self.printed_at and time.monotonic() - self.started >= STARTING_HINT_S
        if self.is_hinted or is_interrupted or not is_quiet:
            return ""
        self.is_hinted = True
        return "started on Modal; waiting for a machine"

    def finish(self) -> None:
        """Wait for the last lines, which arrive after the end of the call."""
        ended = time.monotonic()
        while self.is_alive() and time.monotonic() < min(
            ended + LOG_TIMEOUT_S, max(ended, self.printed_at) + LOG_QUIET_S
        ):
            self.join(INTERRUPT_POLL_S)


class _Waiter(threading.Thread):
    """Waits for the end of the call. If Modal's answer is uncertain, the run's record decides."""

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
        uncertain = 0
        while True:
            try:
                state = self._poll()
            except Cancelled:
                return
            except ModalUnavailable:
                self.ended.wait(calls.RECONNECT_INTERVAL_S)
                continue
            except Exception as error:
                state = CallState(False, error=str(error), uncertain=True)
            if state.alive:
                uncertain = 0
                continue
            if state.uncertain:
                recorded = self._recorded_end()
                if recorded is None and uncertain < MAX_UNCERTAIN_ANSWERS:
                    uncertain += 1
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
        limit = limit_option(str(state.value.get("reason", "")))
        if limit and handle.job not in RESUMABLE_JOBS:  # `runner resume` continues the others
            target.cli.info(f"stopped: its {limit} is used up; run it again with a higher {limit}")
        return int(state.value.get("status", ExitStatus.ERROR))
    if state.attempts_used_up or state.error == CANCELLED:
        return int(ExitStatus.UNFINISHED)
    if state.uncertain:
        target.cli.info(
            f"Modal does not report the end of the call ({state.error}); "
            f"`runner status {handle.run}` shows what the run recorded"
        )
        return None
    target.cli.info(f"Modal: {state.error}")
    return int(ExitStatus.ERROR)


# Modal ends a terminal that sends nothing for a while; its own client sends an empty message this
# often.
KEEPALIVE_INTERVAL_S = 5.0

READ_SIZE = 65536


def pump(process: Any) -> int:
    """Connect stdin, stdout and stderr without a terminal; return the process's exit status."""
    errors = threading.Thread(target=_copy, args=(process.stderr, 2), daemon=True)
    inputs = threading.Thread(target=_feed, args=(process,), daemon=True)
    errors.start()
    inputs.start()
    _copy(process.stdout, 1)
    errors.join()
    return int(process.wait())


def attach(process: Any, resize: Callable[[int, int], None]) -> int:
    """Connect the terminal until ``process`` ends. ``resize`` gets rows and columns."""
    wake_read, wake_write = os.pipe()
    changes = threading.Event()
    ended = threading.Event()

    def read_output() -> None:
        try:
            _copy(process.stdout, 1)
        finally:
            ended.set()
            changes.set()
            os.write(wake_write, b".")

    def follow_size() -> None:
        while changes.wait() and not ended.is_set():
            changes.clear()
            size = os.get_terminal_size(0)
            resize(size.lines, size.columns)

    output = threading.Thread(target=read_output, daemon=True)
    sizes = threading.Thread(target=follow_size, daemon=True)
    with _raw(), signal_handler(lambda *_: changes.set(), signal.SIGWINCH):
        output.start()
        sizes.start()
        while not ended.is_set():
            readable, _, _ = select.select([0, wake_read], [], [], KEEPALIVE_INTERVAL_S)
            keys = os.read(0, 4096) if 0 in readable else b""
            if wake_read in readable or (0 in readable and not keys):
                break
            with suppress(Exception):  # it has just ended; its output shows how
                process.stdin.write(keys)
                process.stdin.drain()
    if not ended.is_set():  # this terminal was closed
        return 128 + signal.SIGHUP
    output.join()
    return int(process.wait())


def _copy(stream: Any, descriptor: int) -> None:
    for chunk in stream:
        content = chunk if isinstance(chunk, bytes) else chunk.encode()
        while content:
            content = content[os.write(descriptor, content) :]


def _feed(process: Any) -> None:
    with suppress(Exception):
        while content := os.read(sys.stdin.fileno(), READ_SIZE):
            process.stdin.write(content)
            process.stdin.drain()
    with suppress(Exception):
        process.stdin.write_eof()
        process.stdin.drain()


@contextmanager
def _raw() -> Iterator[None]:
    import termios
    import tty

    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
