"""Following a call from this terminal: its output, its end, and what Ctrl-C means.

The app is detached all the same: when this process dies, however it dies, the run goes on.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import click

from job.exit_status import ExitStatus
from runner.errors import ModalUnavailable
from runner.jobs import RESUMABLE_JOBS
from runner.runs import endings
from runner.signals import SignalForwarder
from runner.target import LaunchHandle
from runner.targets.modal import calls
from runner.targets.modal.calls import CANCELLED, OFFLINE, CallState, Cancelled, CancelScope

if TYPE_CHECKING:
    from runner.targets.modal.target import ModalTarget

LOOK = 0.1  # seconds between two looks at whether Ctrl-C was pressed

POLL = 30.0  # seconds that Modal holds a question about the end back

SILENT = 8.0  # seconds without a word, Modal's own lines included, after which it is said what is waited for

REST, QUIET = (
    10.0,
    2.0,
)  # seconds after the end for the last lines of the log, at most and since the last one


def follow(target: ModalTarget, started: LaunchHandle) -> int | None:
    """Print the job's output until it ends; its own exit status. None where the user left before."""
    screen = (
        threading.Lock()
    )  # held while a question is asked, so that the log does not run over it
    ended = threading.Event()
    done: list[CallState] = []
    with CancelScope() as asked:
        printer = _Printer(started.location, screen, ended, asked)
        printer.start()
        threading.Thread(target=lambda: _wait(started.id, done, ended, asked), daemon=True).start()
        if not _stays(target, started, printer, screen):
            return None
        printer.finish()
    return _status(target, started, done[0])


def _stays(
    target: ModalTarget, started: LaunchHandle, printer: _Printer, screen: threading.Lock
) -> bool:
    """Wait for the end. False where the user left before, and was told so: then nothing more is printed."""
    pressed: list[signal.Signals] = []
    again = threading.Event()
    stopping, told = False, False
    began = time.monotonic()
    with SignalForwarder(pressed.append, again.set):
        while not printer.ended.wait(LOOK):
            if not (told or printer.last or pressed) and time.monotonic() - began >= SILENT:
                told = True
                target.cli.info(
                    "started on Modal; its first words come once a machine is there and has begun"
                )
            if again.is_set():
                with screen:
                    printer.is_left = True
                target.cli.info(f"left; the run goes on stopping. {_how_to_find(started.run)}")
                return False
            if pressed and not stopping:
                with screen:
                    stopping = _wants_stop(target, started, pressed[0])
                    printer.is_left = not stopping
                if not stopping:
                    target.cli.info(f"left; the run goes on. {_how_to_find(started.run)}")
                    return False
                target.cli.info(
                    "stopping: the job writes its checkpoint; Ctrl-C again leaves it alone with that"
                )
                _ask_to_stop(target, started)
    return True


def _wants_stop(target: ModalTarget, started: LaunchHandle, which: signal.Signals) -> bool:
    """On a terminal the user decides. Off one SIGINT stops the run; SIGTERM and a closed terminal leave it."""
    if which != signal.SIGINT:
        return False
    if not target.cli.is_terminal:
        return True
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return target.cli.ask(
            f"Stop run '{started.run}'? (No: it goes on, and this terminal is free.)"
        )
    except (click.Abort, KeyboardInterrupt):  # Ctrl-C again: away from here
        return False
    finally:
        signal.signal(signal.SIGINT, before)


def _ask_to_stop(target: ModalTarget, started: LaunchHandle) -> None:
    """What `runner stop` does, without waiting: the end is waited for already."""
    run = target.read(started.run)
    if any(attempt.call == started.id for attempt in run.ledger.attempts):
        target.ask_to_stop(started.run, started.id)
    else:
        calls.cancel(started.id)


class _Printer(threading.Thread):
    """Copies the app's output to stdout and stderr. Where the stream breaks for good the run still goes on."""

    def __init__(
        self, app: str, screen: threading.Lock, ended: threading.Event, asked: CancelScope
    ) -> None:
        super().__init__(daemon=True)
        self.app, self.screen, self.ended, self.asked = app, screen, ended, asked
        self.last = 0.0  # when something was printed
        self.is_left = False  # set while the screen is held: from then on it prints nothing

    def run(self) -> None:
        try:
            for is_talk, text in calls.stream(self.app, self.ended, self.asked):
                stream = sys.stderr if is_talk else sys.stdout
                with self.screen:
                    if self.is_left:
                        return
                    stream.write(text)
                    stream.flush()
                self.last = time.monotonic()
        except Cancelled:
            return
        except Exception as error:
            print(
                f"runner: the log can't be followed any more ({error}); the run goes on",
                file=sys.stderr,
            )

    def finish(self) -> None:
        """Wait for the last lines: the app is not done at once, and its lines come late."""
        began = time.monotonic()
        while self.is_alive() and time.monotonic() < min(
            began + REST, max(began, self.last) + QUIET
        ):
            self.join(LOOK)


def _wait(call: str, done: list[CallState], ended: threading.Event, asked: CancelScope) -> None:
    while True:
        try:
            state = calls.look(call, POLL, asked)
        except Cancelled:
            return
        except ModalUnavailable:
            ended.wait(OFFLINE)
            continue
        except Exception as error:
            state = CallState(False, error=str(error))
        if not state.alive:
            done.append(state)
            ended.set()
            return


def _status(target: ModalTarget, started: LaunchHandle, state: CallState) -> int:
    """The exit status, with a word about an end that was not the job's own."""
    if state.value is not None:
        cap = endings.limit_option(str(state.value.get("reason", "")))
        if (
            cap and started.job not in RESUMABLE_JOBS
        ):  # a run's record says it, and `runner resume` goes on with it
            target.cli.info(f"stopped: its {cap} is used up; type it again with more")
        return int(state.value.get("status", 1))
    if state.attempts_used_up or state.error == CANCELLED:
        return int(ExitStatus.UNFINISHED)
    target.cli.info(f"Modal: {state.error or 'the call ended without a word'}")
    return int(ExitStatus.ERROR)


def _how_to_find(run: str) -> str:
    return f"`runner logs {run} --follow` shows it, `runner stop {run}` ends it"
