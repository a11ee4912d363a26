"""`runner watch`: the loop between the looks, the keys and the screen."""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any

from job.exit_status import ExitStatus
from job.run_record import EndReason, RunStatus
from runner.console import CliContext
from runner.errors import RunnerError, not_found
from runner.project import find_checkout
from runner.runs import endings
from runner.runs.find import ResolvedRun
from runner.runs.history import HistoryReader
from runner.runs.table import status_text
from runner.signals import SignalForwarder
from runner.target import Target, all_targets
from runner.views.dashboard import Snapshot, line, screen, to_json
from runner.views.poller import RunDeleted, RunPoller

TICK = 0.2  # seconds in which a key, a new size and a new look show

EVERY_LINE = 10.0  # seconds between two lines off a terminal

LAST_LOOK = 1.0  # seconds that leaving waits for a look that is under way

ENDS = {
    RunStatus.FINISHED: ExitStatus.DONE,
    RunStatus.UNFINISHED: ExitStatus.UNFINISHED,
    RunStatus.LOST: ExitStatus.UNFINISHED,  # killed, or the machine went down: it goes on from its checkpoint
}


def watch(cli: CliContext, found: ResolvedRun, every: float | None, as_json: bool) -> int:
    """Show the run until it ends, or the user leaves; the exit status tells which."""
    run = found.state.run
    on_terminal = cli.is_terminal and not as_json and cli.environ.get("TERM") != "dumb"
    if every is None:
        every = max(1.0, 2 * found.source.poll_interval_s) if on_terminal else EVERY_LINE
    reader = HistoryReader(run, found.source)
    first = reader.poll()
    if first is None:
        raise not_found(f"run '{run}' was removed; `runner runs` lists those that are there")
    left: list[object] = []
    looker = RunPoller(reader, first, every, lambda: _elsewhere(cli, run))
    try:
        with SignalForwarder(left.append, lambda: left.append(None)):
            if on_terminal:
                seen = _on_screen(cli, looker, lambda: bool(left))
            else:
                seen = _in_lines(cli, looker, lambda: bool(left), every, as_json)
    except RunDeleted as error:
        raise not_found(
            f"run '{run}' was removed; `runner runs` lists those that are there"
        ) from error
    status = _say_end(cli, seen)
    if not looker.stop(LAST_LOOK):  # it hangs on a connection, and so would the end of this process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(status))
    return int(status)


def _on_screen(cli: CliContext, looker: RunPoller, left: Callable[[], bool]) -> Snapshot:
    from rich.live import Live

    console = cli.console()
    drawn: tuple[object, ...] = ()
    with Keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            seen = looker.newest()
            now, size = time.time(), console.size
            if (drawing := (seen.history, seen.trouble, int(now), size)) != drawn:
                live.update(screen(seen, now, size.width, size.height), refresh=True)
                drawn = drawing
            if seen.over or left() or keys.wait(TICK) in ("q", "Q"):
                break
    console.print(
        screen(replace(seen, over=True), time.time(), console.width, min(console.height, 30))
    )
    return seen


def _in_lines(
    cli: CliContext, looker: RunPoller, left: Callable[[], bool], every: float, as_json: bool
) -> Snapshot:
    told = 0.0
    while True:
        seen = looker.newest()
        if seen.over or time.monotonic() - told >= every or not told:
            cli.write(json.dumps(to_json(seen), default=str) if as_json else line(seen))
            sys.stdout.flush()
            told = time.monotonic()
        if seen.over or left():
            return seen
        time.sleep(TICK)


def _say_end(cli: CliContext, seen: Snapshot) -> ExitStatus:
    state = seen.history.state
    if not seen.over:
        cli.info(f"left; run {state.run} goes on. `runner watch {state.run}` shows it again")
        return ExitStatus.INTERRUPTED
    stands = status_text(state)
    cli.info(f"run {state.run} {'is' if stands == state.status else 'was'} {stands}")
    if cap := endings.limit_message(state.run, state.unfinished_reason):
        cli.info(cap)
        return (
            ExitStatus.OVER_BUDGET
            if state.unfinished_reason == EndReason.BUDGET
            else ExitStatus.UNFINISHED
        )
    if state.status != RunStatus.FINISHED and state.job == "train":
        cli.info(
            f"`runner resume {state.run}` goes on from its newest checkpoint; "
            f"`runner logs {state.run} --tail 50` shows its last words"
        )
    return ENDS.get(state.status, ExitStatus.JOB_FAILED)


def _elsewhere(cli: CliContext, run: str) -> Target:
    """Where the run is now. Raises Gone; RunnerError where a target that may have it can't be asked."""
    trouble: RunnerError | None = None
    for target in all_targets(cli, find_checkout(cli.cwd)):
        try:
            if target.state(run) is not None:
                return target
        except RunnerError as error:
            trouble = error
    raise trouble or RunDeleted(run)


class Keys:
    """While entered, ``wait`` tells what was pressed. Where the system has no termios only time passes."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def __enter__(self) -> Keys:
        try:
            import termios
            import tty

            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)  # Ctrl-C stays a signal
        except (ImportError, OSError, ValueError):  # termios.error is an OSError only since 3.14
            self._before = None
        except Exception as error:
            if type(error).__name__ != "error":
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

    def wait(self, seconds: float) -> str:
        """The key pressed within ``seconds``; '' where there was none."""
        if self._before is None:
            time.sleep(seconds)
            return ""
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        if not ready:
            return ""
        pressed = os.read(sys.stdin.fileno(), 1).decode(errors="replace")
        if not pressed:  # the terminal is gone, and would be ready for ever
            self._before = None
        return pressed
