"""A run that is watched through sleep, a lost network and a move to another target."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runner.errors import RunnerError
from runner.runs.history import HistoryReader, RunFiles
from runner.target import RunInfo
from runner.views.dashboard import line
from runner.views.poller import HANGS_AFTER, SILENT_AFTER, Clock, RunDeleted, RunPoller
from tests.runner.fake_target import FakeTarget
from tests.waiting import wait_for

RUNNING = RunInfo("warm", "train", "host", "running", alive=True, step=50, max_steps=100)


class Flaky(FakeTarget):
    """``answer`` is called at each question: it may raise, and it may wait."""

    answer: Callable[[], object] = staticmethod(lambda: None)

    def state(self, run: str) -> RunInfo | None:
        self.answer()
        return super().state(run)


@pytest.fixture
def target(checkout: Path, make_run: Callable[..., Path]) -> Flaky:
    make_run("warm", status="running")
    return Flaky(checkout, states=[RUNNING])


class Time:
    """The clock's hands."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def looker_at(target: Flaky, elsewhere: Callable[[], RunFiles], time: Time) -> RunPoller:
    reader = HistoryReader("warm", target)
    first = reader.poll()
    assert first is not None
    return RunPoller(reader, first, 0.01, elsewhere, Clock(time))


def nowhere() -> RunFiles:
    raise RunDeleted("warm")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RunnerError("Modal can't be reached; check the network"),
            "Modal can't be reached; check the network",
        ),
        (OSError("connection reset"), "connection reset"),
        (AssertionError("what a library may raise"), "AssertionError: what a library may raise"),
    ],
)
def test_a_place_that_does_not_answer_is_asked_again(
    target: Flaky, error: Exception, words: str
) -> None:
    time = Time()
    looker = looker_at(target, nowhere, time)

    def fails() -> None:
        raise error

    target.answer = fails
    time.now += 7
    wait_for(lambda: looker.newest().trouble)
    assert f"no answer for 7s, trying again: {words}" in line(looker.newest())
    assert looker.newest().history.state.step == 50  # what is known stays on the screen
    target.answer = lambda: None
    target.states = [replace(RUNNING, step=60)]
    wait_for(lambda: looker.newest().history.state.step == 60)
    assert (looker.newest().trouble, looker.newest().age) == ("", 0.0)
    assert looker.stop(5.0)


def test_a_look_that_hangs_since_the_machine_slept_is_given_up(target: Flaky) -> None:
    time, woken = Time(), threading.Event()
    looker = looker_at(target, nowhere, time)
    sleeper = threading.current_thread()

    def hangs() -> None:
        nonlocal sleeper
        sleeper = threading.current_thread()
        target.answer = lambda: None
        target.states = [replace(RUNNING, step=60)]
        woken.wait(60)

    target.answer = hangs
    wait_for(lambda: target.states[0].step == 60)
    looker.newest()
    time.now += SILENT_AFTER + 1
    assert looker.newest().trouble == "the connection says nothing"
    assert looker.newest().history.state.step == 50
    time.now += HANGS_AFTER
    looker.newest()
    wait_for(lambda: looker.newest().history.state.step == 60)
    assert sleeper.is_alive()
    woken.set()
    sleeper.join(5)
    assert looker.newest().trouble == ""
    assert looker.stop(5.0)


def test_a_run_that_goes_on_elsewhere_is_followed_there(target: Flaky, checkout: Path) -> None:
    other = FakeTarget(checkout, "local", states=[replace(RUNNING, target="local", step=70)])
    looker = looker_at(target, lambda: other, Time())
    target.states = []
    wait_for(lambda: looker.newest().history.state.target == "local")
    assert looker.newest().history.state.step == 70
    assert looker.stop(5.0)


def test_a_run_that_was_removed_is_gone(target: Flaky) -> None:
    looker = looker_at(target, nowhere, Time())
    target.states = []

    def is_gone() -> bool:
        try:
            looker.newest()
        except RunDeleted:
            return True
        return False

    wait_for(is_gone)
