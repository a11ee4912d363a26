"""What Modal's real server answers beside what the stand-in does: calls that are lost, logs that break off, accounts at
their limit, builds that are broken off."""

from __future__ import annotations

import asyncio
import datetime
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import modal
import pytest
from modal import exception

from runner.errors import ModalUnavailable, RunnerError
from runner.runs.attempts import AttemptLog, CloudAttempt
from runner.target import LaunchHandle
from runner.targets.modal import calls, follow
from runner.targets.modal.calls import CANCELLED, CallState, Cancelled, CancelScope, look
from runner.targets.modal.client import translate_modal_errors
from runner.targets.modal.container import other_call
from runner.targets.modal.image import make


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (
            exception.InternalFailure("Server has lost track of input"),
            CallState(
                False, None, "Modal lost it: Server has lost track of input", attempts_used_up=True
            ),
        ),
        (
            exception.RemoteError("Function call was cancelled by user or a failure."),
            CallState(False, None, CANCELLED),
        ),
        (exception.RemoteError("out of memory"), CallState(False, None, "out of memory")),
        (
            exception.ExecutionError("Could not deserialize"),
            CallState(False, None, "Could not deserialize"),
        ),
        (
            exception.PermissionDeniedError("fc-1"),
            CallState(False, None, "its last call was in another workspace"),
        ),
    ],
)
def test_a_call_that_ended_by_itself_is_an_end_and_no_fault(
    monkeypatch: pytest.MonkeyPatch, error: Exception, state: CallState
) -> None:
    def get(timeout: float) -> None:
        raise error

    monkeypatch.setattr(modal.FunctionCall, "from_id", lambda call: SimpleNamespace(get=get))
    assert look("fc-1") == state


@pytest.mark.parametrize(
    ("error", "other"),
    [
        (TimeoutError(), "fc-1"),  # it has not ended
        (exception.FunctionTimeoutError("used up"), ""),
        (exception.InputCancellation("cancelled"), ""),
        (exception.RemoteError("lost"), ""),
        (None, ""),
    ],
)
def test_a_body_leaves_a_run_alone_on_which_another_launch_is_at_work(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | None, other: str
) -> None:
    def get(timeout: float) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(modal.FunctionCall, "from_id", lambda call: SimpleNamespace(get=get))
    ledger = AttemptLog()
    assert other_call(ledger, "fc-2") == ""
    ledger.begin(CloudAttempt("fc-1", "ta-1", 0.0, 1.0, 1.0), "ap-1")
    assert other_call(ledger, "fc-1") == ""  # a further attempt of its own
    assert other_call(ledger, "fc-2") == other
    ledger.end_attempt("stopped", 101, 2.0)
    assert other_call(ledger, "fc-2") == ""


class Logs:
    """Of an app that prints 0 to 5, a line a second, two of them in one; the connection is lost behind the third."""

    def __init__(self) -> None:
        start = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
        times = (0, 1, 1, 2, 3, 4)
        self.entries = [
            SimpleNamespace(
                message=f"{i}\n", source="stdout", timestamp=start + datetime.timedelta(seconds=at)
            )
            for i, at in enumerate(times)
        ]
        self.asked: list[datetime.datetime] = []

    def stream(self) -> Iterator[Any]:
        for i, entry in enumerate(self.entries):
            if i == 2 and not self.asked:
                raise exception.ConnectionError("Could not connect to the Modal server.")
            yield entry

    def fetch(self, since: datetime.datetime) -> Iterator[Any]:
        self.asked.append(since)
        return (entry for entry in self.entries[:5] if entry.timestamp >= since)


def test_a_log_goes_on_where_the_connection_was_lost_with_each_line_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logs = Logs()
    monkeypatch.setattr(calls, "OFFLINE", 0.01)
    monkeypatch.setattr(modal.App, "lookup", lambda app: SimpleNamespace(logs=logs))
    printed = list(calls.stream("ap-1", threading.Event()))
    assert printed == [(False, f"{i}\n") for i in range(6)]
    assert logs.asked == [logs.entries[1].timestamp]


def test_what_is_waited_for_in_a_thread_can_be_given_up() -> None:
    is_asked, told = threading.Event(), list[str]()

    async def answers() -> AsyncIterator[str]:
        try:
            yield "first"
            is_asked.set()
            await asyncio.Event().wait()
        finally:
            told.append("closed")

    def read(asked: CancelScope) -> None:
        try:
            told.extend(asked.each(answers()))
        except Cancelled:
            told.append("left")

    with CancelScope() as asked:
        reader = threading.Thread(target=read, args=(asked,))
        reader.start()
        assert is_asked.wait(10)
    reader.join(10)
    assert told == ["first", "closed", "left"]
    with pytest.raises(Cancelled):
        asked.ask(answers().__anext__())


@pytest.mark.parametrize(("printed", "lines"), [(0.0, 1), (5.0, 0)])
def test_a_launch_that_is_silent_says_once_what_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, printed: float, lines: int
) -> None:
    monkeypatch.setattr(follow, "SILENT", 0.0)
    looks = iter((False, False, False, True))
    said: list[str] = []
    target: Any = SimpleNamespace(env=SimpleNamespace(say=said.append))
    ended = SimpleNamespace(wait=lambda seconds: next(looks))
    printer: Any = SimpleNamespace(ended=ended, last=printed)
    started = LaunchHandle("tiny", "cloud", "train", "fc-1", 0.0)
    assert follow._stays(target, started, printer, threading.Lock())
    assert len(said) == lines
    assert all("once a machine is there" in line for line in said)


def test_a_log_that_breaks_off_behind_the_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    over.set()
    monkeypatch.setattr(modal.App, "lookup", lambda app: SimpleNamespace(logs=Logs()))
    assert [text for _, text in calls.stream("ap-1", over)] == ["0\n", "1\n"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            exception.ResourceExhaustedError("exceeded its spend limit"),
            "spend limit; modal.com/settings/usage has",
        ),
        (
            exception.InvalidError("Please add a payment method to use H100"),
            "the card, or take --gpu L4",
        ),
        (exception.VersionError("too old"), "Modal: too old"),
    ],
)
def test_what_asking_again_does_not_mend_is_said_at_once(error: Exception, text: str) -> None:
    with pytest.raises(RunnerError, match=text), translate_modal_errors():
        raise error
    with pytest.raises(ModalUnavailable), translate_modal_errors():
        raise exception.ResourceExhaustedError("too many requests")


@pytest.fixture
def image() -> Callable[[list[str]], Any]:
    """One whose next builds end with these errors, and then well."""

    def image(errors: list[str]) -> Any:
        def build() -> None:
            if errors:
                raise exception.RemoteError(errors.pop(0))

        return SimpleNamespace(build=build)

    return image


def test_a_build_that_modal_broke_off_is_begun_again(image: Callable[[list[str]], Any]) -> None:
    said: list[str] = []
    broken = "Image build for im-1 terminated due to external shut-down. Please try again."
    make(image([broken, broken]), said.append)
    assert said == ["Modal broke the build off; it is begun again"] * 2
    with pytest.raises(exception.RemoteError, match="shut-down"):
        make(image([broken] * 3), said.append)
    said.clear()
    with pytest.raises(exception.RemoteError, match="exit status 100"):
        make(image(["apt-get: exit status 100"]), said.append)
    assert said == []
