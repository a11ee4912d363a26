"""Answers of Modal that the stand-in does not give: lost calls, broken logs, limits."""

from __future__ import annotations

import asyncio
import datetime
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import modal
import pytest
from modal import exception

from runner.errors import ModalUnavailable, RunnerError
from runner.runs.attempts import AttemptLog, CloudAttempt
from runner.target import LaunchHandle, LocalVolume
from runner.targets.modal import calls
from runner.targets.modal.calls import CANCELLED, CallState, Cancelled, CancelScope, poll_call
from runner.targets.modal.client import translate_modal_errors
from runner.targets.modal.container import active_call
from runner.targets.modal.image import build_now
from runner.targets.modal.runs import CloudRun, all_runs, state_of


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
            CallState(False, None, "Could not deserialize", uncertain=True),
        ),
        (
            exception.PermissionDeniedError("fc-1"),
            CallState(False, None, "its last call was in a different workspace", uncertain=True),
        ),
    ],
)
def test_ended_call_is_a_state_and_not_an_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, state: CallState
) -> None:
    def get(timeout: float) -> None:
        raise error

    monkeypatch.setattr(modal.FunctionCall, "from_id", lambda call: SimpleNamespace(get=get))
    assert poll_call("fc-1") == state


@pytest.mark.parametrize(
    ("error", "other"),
    [
        (TimeoutError(), "fc-1"),  # the call has not ended
        (exception.FunctionTimeoutError("used up"), ""),
        (exception.InputCancellation("cancelled"), ""),
        (exception.RemoteError("lost"), ""),
        (None, ""),
    ],
)
def test_container_ends_if_a_different_call_of_the_run_is_active(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | None, other: str
) -> None:
    def get(timeout: float) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(modal.FunctionCall, "from_id", lambda call: SimpleNamespace(get=get))
    ledger = AttemptLog()
    assert active_call(ledger, "fc-2") == ""
    ledger.begin(CloudAttempt("fc-1", "ta-1", 0.0, 1.0, 1.0), "ap-1")
    assert active_call(ledger, "fc-1") == ""  # a later attempt of the same call
    assert active_call(ledger, "fc-2") == other
    ledger.end_attempt("stopped", 101, 2.0)
    assert active_call(ledger, "fc-2") == ""


class Logs:
    """The log of an app that prints 0 to 5; the connection is lost after the second line."""

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


def test_log_resumes_after_a_lost_connection_without_repeats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logs = Logs()
    monkeypatch.setattr(calls, "RECONNECT_INTERVAL_S", 0.01)
    monkeypatch.setattr(modal.App, "lookup", lambda app: SimpleNamespace(logs=logs))
    printed = list(calls.stream_log("ap-1", threading.Event()))
    assert printed == [(False, f"{i}\n") for i in range(6)]
    assert logs.asked == [logs.entries[1].timestamp]


def test_leaving_the_scope_cancels_a_request_in_a_different_thread() -> None:
    is_asked, events = threading.Event(), list[str]()

    async def answers() -> AsyncIterator[str]:
        try:
            yield "first"
            is_asked.set()
            await asyncio.Event().wait()
        finally:
            events.append("closed")

    def read(scope: CancelScope) -> None:
        try:
            events.extend(scope.iterate(answers()))
        except Cancelled:
            events.append("left")

    with CancelScope() as scope:
        reader = threading.Thread(target=read, args=(scope,))
        reader.start()
        assert is_asked.wait(10)
    reader.join(10)
    assert events == ["first", "closed", "left"]
    with pytest.raises(Cancelled):
        scope.wait(answers().__anext__())


def waiter(read: Callable[[str], CloudRun]) -> calls._Waiter:
    """Return a waiter for the call fc-1; ``read`` returns the run's records."""
    handle = LaunchHandle("tiny", "cloud", "train", "fc-1", 0.0)
    target: Any = SimpleNamespace(read=read)
    scope: Any = None
    return calls._Waiter(target, handle, threading.Event(), scope)


UNEXPECTED = (
    exception.NotFoundError,
    exception.PermissionDeniedError,
    exception.AuthError,
    exception.InvalidError,
    exception.ConflictError,
    exception.UnimplementedError,
    exception.InternalError,
    exception.DataLossError,
    exception.ResourceExhaustedError,
    exception.ServiceError,
)


@pytest.mark.parametrize("error", UNEXPECTED)
def test_unexpected_answer_is_not_the_end_of_the_call(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    answers: list[Any] = [error("what?"), error("billing"), {"status": 0, "reason": "finished"}]

    def get(timeout: float) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(calls, "RECONNECT_INTERVAL_S", 0.0)
    monkeypatch.setattr(modal.FunctionCall, "from_id", lambda call: SimpleNamespace(get=get))
    waits = waiter(lambda run: CloudRun(run, None, None, AttemptLog()))
    waits.run()
    assert waits.state == CallState(False, {"status": 0, "reason": "finished"})


def test_record_decides_if_modal_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(timeout: float) -> None:
        raise exception.NotFoundError("fc-1")

    log = AttemptLog()
    log.begin(CloudAttempt("fc-1", "ta-1", 0.0, 1.0, 1.0), "ap-1")
    log.end_attempt("stopped", 101, 2.0)
    log.end_call(101, "stopped")
    monkeypatch.setattr(modal.FunctionCall, "from_id", lambda call: SimpleNamespace(get=get))
    waits = waiter(lambda run: CloudRun(run, None, None, log))
    waits.run()
    assert waits.state == CallState(False, {"status": 101, "reason": "stopped"})


@pytest.mark.parametrize(("printed", "lines"), [(0.0, 1), (5.0, 0)])
def test_silent_launch_prints_one_hint(
    monkeypatch: pytest.MonkeyPatch, printed: float, lines: int
) -> None:
    monkeypatch.setattr(calls, "STARTING_HINT_S", 0.0)
    printer = calls._Printer("ap-1", CancelScope())
    printer.printed_at = printed
    messages = [line for line in (printer.state(False), printer.state(False)) if line]
    assert len(messages) == lines
    assert all("waiting for a machine" in line for line in messages)


def test_log_lost_after_the_end_is_not_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    over.set()
    monkeypatch.setattr(modal.App, "lookup", lambda app: SimpleNamespace(logs=Logs()))
    assert [text for _, text in calls.stream_log("ap-1", over)] == ["0\n", "1\n"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            exception.ResourceExhaustedError("exceeded its spend limit"),
            "spend limit; modal.com/settings/usage shows",
        ),
        (
            exception.InvalidError("Please add a payment method to use H100"),
            "the card, or use --gpu L4",
        ),
        (exception.VersionError("too old"), "Modal: too old"),
    ],
)
def test_permanent_refusal_is_not_retried(error: Exception, text: str) -> None:
    with pytest.raises(RunnerError, match=text), translate_modal_errors():
        raise error
    with pytest.raises(ModalUnavailable), translate_modal_errors():
        raise exception.ResourceExhaustedError("too many requests")


@pytest.fixture
def image() -> Callable[[list[str]], Any]:
    """Return a function that makes an image whose next builds fail with the given errors."""

    def image(errors: list[str]) -> Any:
        def build() -> None:
            if errors:
                raise exception.RemoteError(errors.pop(0))

        return SimpleNamespace(build=build)

    return image


def test_interrupted_build_is_retried(image: Callable[[list[str]], Any]) -> None:
    messages: list[str] = []
    broken = "Image build for im-1 terminated due to external shut-down. Please try again."
    build_now(image([broken, broken]), messages.append)
    assert messages == ["Modal interrupted the build; retrying"] * 2
    with pytest.raises(exception.RemoteError, match="shut-down"):
        build_now(image([broken] * 3), messages.append)
    messages.clear()
    with pytest.raises(exception.RemoteError, match="exit status 100"):
        build_now(image(["apt-get: exit status 100"]), messages.append)
    assert messages == []


def test_a_run_with_a_damaged_record_is_listed(tmp_path: Path) -> None:
    for name, text in (("bad", "{"), ("empty", ""), ("other", '{"name": "other"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    (tmp_path / "stray").mkdir()
    files: Any = LocalVolume(tmp_path)
    found = [state_of(run) for run in all_runs(files)]
    assert [(state.run, state.status, state.reason) for state in found] == [
        ("bad", "lost", "run.json is damaged"),
        ("empty", "lost", "run.json is damaged"),
    ]
