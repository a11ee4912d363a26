"""`runner watch`: the loop between the looks, the keys and the screen."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from job.exit_status import ExitStatus
from runner.checkout import find_checkout
from runner.errors import RunnerError, not_found
from runner.history.reader import Reader
from runner.interrupts import Interrupts
from runner.runs import caps
from runner.runs.find import Found
from runner.runs.table import standing
from runner.screen.keys import Keys
from runner.screen.looker import Gone, Looker
from runner.screen.view import Seen, facts, line, screen
from runner.targets import all_targets
from runner.targets.protocol import Target
from runner.terminal import Environment

TICK = 0.2  # seconds in which a key, a new size and a new look show
EVERY_LINE = 10.0  # seconds between two lines off a terminal
LAST_LOOK = 1.0  # seconds that leaving waits for a look that is under way

ENDS = {
    "finished": ExitStatus.DONE,
    "unfinished": ExitStatus.UNFINISHED,
    "dead": ExitStatus.UNFINISHED,  # killed, or the machine went down: it goes on from its checkpoint
}


def watch(env: Environment, found: Found, every: float | None, as_json: bool) -> int:
    """Show the run until it ends, or the user leaves; the exit status tells which."""
    run = found.state.run
    on_terminal = env.is_terminal and not as_json and env.environ.get("TERM") != "dumb"
    if every is None:
        every = max(1.0, 2 * found.target.look_seconds) if on_terminal else EVERY_LINE
    reader = Reader(run, found.target)
    first = reader.look()
    if first is None:
        raise not_found(f"run '{run}' was removed; `runner runs` lists those that are there")
    left: list[object] = []
    looker = Looker(reader, first, every, lambda: _elsewhere(env, run))
    try:
        with Interrupts(left.append, lambda: left.append(None)):
            if on_terminal:
                seen = _on_screen(env, looker, lambda: bool(left))
            else:
                seen = _in_lines(env, looker, lambda: bool(left), every, as_json)
    except Gone as error:
        raise not_found(f"run '{run}' was removed; `runner runs` lists those that are there") from error
    status = _say_end(env, seen)
    if not looker.stop(LAST_LOOK):  # it hangs on a connection, and so would the end of this process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(status))
    return int(status)


def _on_screen(env: Environment, looker: Looker, left: Callable[[], bool]) -> Seen:
    from rich.live import Live

    console = env.console()
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
    console.print(screen(replace(seen, over=True), time.time(), console.width, min(console.height, 30)))
    return seen


def _in_lines(
    env: Environment, looker: Looker, left: Callable[[], bool], every: float, as_json: bool
) -> Seen:
    told = 0.0
    while True:
        seen = looker.newest()
        if seen.over or time.monotonic() - told >= every or not told:
            env.write(json.dumps(facts(seen), default=str) if as_json else line(seen))
            sys.stdout.flush()
            told = time.monotonic()
        if seen.over or left():
            return seen
        time.sleep(TICK)


def _say_end(env: Environment, seen: Seen) -> ExitStatus:
    state = seen.history.state
    if not seen.over:
        env.say(f"left; run {state.run} goes on. `runner watch {state.run}` shows it again")
        return ExitStatus.INTERRUPTED
    stands = standing(state)
    env.say(f"run {state.run} {'is' if stands == state.status else 'was'} {stands}")
    if cap := caps.in_words(state.run, state.left_by):
        env.say(cap)
        return ExitStatus.OVER_BUDGET if state.left_by == "budget" else ExitStatus.UNFINISHED
    if state.status != "finished" and state.job == "train":
        env.say(
            f"`runner resume {state.run}` goes on from its newest checkpoint; "
            f"`runner logs {state.run} --tail 50` shows its last words"
        )
    return ENDS.get(state.status, ExitStatus.JOB_FAILED)


def _elsewhere(env: Environment, run: str) -> Target:
    """Where the run is now. Raises Gone; RunnerError where a target that may have it can't be asked."""
    trouble: RunnerError | None = None
    for target in all_targets(env, find_checkout(env.cwd)):
        try:
            if target.state(run) is not None:
                return target
        except RunnerError as error:
            trouble = error
    raise trouble or Gone(run)
