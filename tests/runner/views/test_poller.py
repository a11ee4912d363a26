"""Polling a run through sleep, a lost network and a change of its target."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runner.errors import NoSuchRun, RunnerError
from runner.runs.history import HistoryReader, run_removed
from runner.target import RunInfo, RunSource
from runner.views.dashboard import format_line
from runner.views.watch import POLL_TIMEOUT_S, SLOW_POLL_S, RunPoller
from tests.runner.fake_target import FakeTarget
from tests.waiting import wait_for

RUNNING = RunInfo("warm", "train", "host", "running", alive=True, step=50, max_steps=100)


class FlakyTarget(FakeTarget):
    """A target that calls ``before_answer`` at each poll; it can raise or wait."""

    before_answer: Callable[[], object] = staticmethod(lambda: None)

    def state(self, run: str) -> RunInfo | None:
        self.before_answer()
        return super().state(run)


@pytest.fixture
def target(checkout: Path, make_run: Callable[..., Path]) -> FlakyTarget:
    make_run("warm", status="running")
    return FlakyTarget(checkout, states=[RUNNING])


class FakeClock:
    """A clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def start_poller(
    target: FlakyTarget, find_again: Callable[[], RunSource], clock: FakeClock
) -> RunPoller:
    reader = HistoryReader("warm", target)
    first = reader.poll()
    assert first is not None
    return RunPoller(reader, first, 0.01, find_again, clock)


def find_nothing() -> RunSource:
    raise run_removed("warm")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RunnerError("no route; check the network"), "no route; check the network"),
        (OSError("connection reset"), "connection reset"),
        (AssertionError("raised by a library"), "AssertionError: raised by a library"),
    ],
)
def test_an_unreachable_target_is_polled_until_it_answers(
    target: FlakyTarget, error: Exception, message: str
) -> None:
    clock = FakeClock()
    poller = start_poller(target, find_nothing, clock)

    def fail() -> None:
        raise error

    target.before_answer = fail
    wait_for(lambda: poller.newest().error)
    clock.now += 7
    assert f"no answer for 7s, trying again: {message}" in format_line(poller.newest())
    assert poller.newest().history.state.step == 50  # the known state stays on the screen
    target.before_answer = lambda: None
    target.states = [replace(RUNNING, step=60)]
    wait_for(lambda: poller.newest().history.state.step == 60)
    assert (poller.newest().error, poller.newest().age) == ("", 0.0)
    assert poller.stop(5.0)


def test_a_poll_that_hangs_after_sleep_is_replaced(target: FlakyTarget) -> None:
    clock, woken = FakeClock(), threading.Event()
    poller = start_poller(target, find_nothing, clock)
    hanging_thread = threading.current_thread()

    def hang() -> None:
        nonlocal hanging_thread
        hanging_thread = threading.current_thread()
        target.before_answer = lambda: None
        target.states = [replace(RUNNING, step=60)]
        woken.wait(60)

    target.before_answer = hang
    wait_for(lambda: target.states[0].step == 60)
    poller.newest()
    clock.now += SLOW_POLL_S + 1
    assert poller.newest().error == "waiting for a response"
    assert poller.newest().history.state.step == 50
    clock.now += POLL_TIMEOUT_S
    poller.newest()
    wait_for(lambda: poller.newest().history.state.step == 60)
    assert hanging_thread.is_alive()
    woken.set()
    hanging_thread.join(5)
    assert poller.newest().error == ""
    assert poller.stop(5.0)


def test_run_resumed_on_a_different_target_is_followed_there(
    target: FlakyTarget, checkout: Path
) -> None:
    other = FakeTarget(checkout, "local", states=[replace(RUNNING, target="local", step=70)])
    poller = start_poller(target, lambda: other, FakeClock())
    target.states = []
    wait_for(lambda: poller.newest().history.state.target == "local")
    assert poller.newest().history.state.step == 70
    assert poller.stop(5.0)


def test_a_deleted_run_is_reported(target: FlakyTarget) -> None:
    poller = start_poller(target, find_nothing, FakeClock())
    target.states = []

    def is_deleted() -> bool:
        try:
            poller.newest()
        except NoSuchRun:
            return True
        return False

    wait_for(is_deleted)
