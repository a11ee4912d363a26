"""Function calls on Modal and their apps: query, follow, cancel and stop them from any machine.

`CancelScope` makes requests to Modal that another thread can cancel. Each call has an app of its
own, and its output is read from the app, because Modal's own lines (waiting for a machine,
preempted, failed to start) belong to no call. The app is detached: the run continues if the
process that follows it ends.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from job.exit_status import ExitStatus
from runner.console import INTERRUPT_POLL_S
from runner.errors import ModalUnavailable
from runner.jobs import RESUMABLE_JOBS
from runner.project import PROJECT
from runner.runs.table import limit_option
from runner.signals import JobOutput
from runner.target import LaunchHandle
from runner.targets.modal.client import translate_modal_errors

if TYPE_CHECKING:
    from datetime import datetime

    from runner.targets.modal.target import ModalTarget

RECONNECT_INTERVAL_S = 5.0  # while Modal can't be reached, for example on a laptop that slept

CANCELLED = "cancelled"

CALL_POLL_S = 30.0  # the longest time that Modal waits for the end before it answers
STARTING_HINT_S = 8.0  # without output, Modal's own lines included

# Waiting for the last lines after the end: at most, and since the last line.
LOG_TIMEOUT_S, LOG_QUIET_S = 10.0, 2.0

MAX_UNCERTAIN_ANSWERS = 12  # a minute, while the run's record has no end

MAX_TAG_LENGTH = 63
MAX_PARALLEL_REQUESTS = 8


@dataclass(frozen=True)
class CallState:
    """The state of a call. It is ``alive`` while it waits for a machine or works.

    A call that ended has the ``value`` that the function returned, or an ``error``. If the error is
    ``uncertain``, Modal did not report its end, and the run's record decides.
    """

    alive: bool
    value: dict[str, Any] | None = None
    error: str = ""
    attempts_used_up: bool = False
    uncertain: bool = False


def poll_call(call: str, seconds: float = 0.0, scope: CancelScope | None = None) -> CallState:
    """Return the call's state, waiting at most ``seconds`` for its end.

    Raises ModalUnavailable if Modal can't be reached, RunnerError if it refuses the request.
    """
    import modal
    from modal import exception

    from runner.targets.modal.entrypoint import AttemptUnfinished

    try:
        with translate_modal_errors():
            try:
                handle = modal.FunctionCall.from_id(call)
                value = (
                    scope.wait(handle.get.aio(timeout=seconds))
                    if scope
                    else handle.get(timeout=seconds)
                )
            except (exception.FunctionTimeoutError, AttemptUnfinished) as error:
                return CallState(False, error=str(error), attempts_used_up=True)
            except exception.OutputExpiredError:
                return CallState(False, error="it ended more than a week ago")
            except TimeoutError:
                return CallState(True)
            except exception.InternalFailure as error:  # a container was lost, after all retries
                return CallState(False, error=f"Modal lost it: {error}", attempts_used_up=True)
            except exception.InputCancellation:
                return CallState(False, error=CANCELLED)
            except exception.RemoteError as error:
                is_cancelled = "cancelled by user" in str(error)
                return CallState(False, error=CANCELLED if is_cancelled else str(error))
            except exception.ExecutionError as error:  # the client can't deserialize the result
                return CallState(False, error=str(error), uncertain=True)
            except exception.PermissionDeniedError:  # a run that was pushed from elsewhere
                error_text = "its last call was in a different workspace"
                return CallState(False, error=error_text, uncertain=True)
    except FileNotFoundError:
        return CallState(False, error="Modal does not know its last call", uncertain=True)
    except ModalUnavailable:
        raise
    except Exception as error:  # get() raises the function's own exception
        if type(error).__module__.startswith(("runner.errors", "modal")):
            raise
        return CallState(False, error=f"{type(error).__name__}: {error}")
    return CallState(False, value=value if isinstance(value, dict) else {})


def cancel_call(call: str, kill: bool = False) -> None:
    """End the call without a retry; if ``kill``, terminate its container at once."""
    import modal

    with translate_modal_errors():
        modal.FunctionCall.from_id(call).cancel(terminate_containers=kill)


def is_app_active(app: str) -> bool:
    """Return True if the app exists and is not stopped."""
    import modal
    from modal.types import AppState

    try:
        with translate_modal_errors():
            state = modal.App.lookup(app).info(refresh=True).lifecycle.state
    except FileNotFoundError:
        return False
    return state not in (AppState.STOPPING, AppState.STOPPED, AppState.DISABLED)


@dataclass(frozen=True)
class LiveApp:
    """An app of a launch that is not stopped. ``started`` is in seconds since the epoch."""

    id: str
    started: float
    tags: dict[str, str]


def live_apps() -> list[LiveApp]:
    """Return the live apps of all launches, oldest first, with the tags that they were given."""
    import modal

    def read(app: modal.App) -> LiveApp | None:
        try:
            with translate_modal_errors():
                created = app.info().lifecycle.created_at
                return LiveApp(str(app.app_id), created.timestamp(), app.get_tags())
        except FileNotFoundError:  # it has stopped since
            return None

    with translate_modal_errors():
        listed = modal.Environment.from_context().apps.list()
    apps = [app for app in listed if app.description == PROJECT]
    with ThreadPoolExecutor(MAX_PARALLEL_REQUESTS) as pool:
        live = [app for app in pool.map(read, apps) if app is not None]
    return sorted(live, key=lambda app: app.started)


def stop_app(app: str) -> None:
    """Stop the app and its call."""
    import modal

    with translate_modal_errors():
        modal.App.lookup(app).stop()


def read_log(app: str, lines: int) -> list[str]:
    """Return the app's last output lines; the smallest plan keeps them for a day."""
    import modal

    try:
        with translate_modal_errors():
            entries = list(modal.App.lookup(app).logs.tail(max(lines, 1)))
    except FileNotFoundError:
        return []
    return "".join(entry.message for entry in entries).splitlines()[-lines:] if lines else []


def stream_log(
    app: str, ended: threading.Event, scope: CancelScope | None = None
) -> Iterator[tuple[bool, str]]:
    """Yield the app's output until it ends, as pairs of (is on stderr, text).

    After a lost connection it resumes after the last line, until ``ended`` is set.
    """
    import modal

    last: datetime | None = None
    seen: set[str] = set()  # messages at that time
    while True:
        try:
            with translate_modal_errors():
                logs = modal.App.lookup(app).logs
                missed = logs.fetch(since=last) if last is not None else ()
                new = scope.iterate(logs.stream.aio()) if scope else logs.stream()
                for entry in chain(missed, new):
                    if last is not None and (
                        entry.timestamp < last
                        or (entry.timestamp == last and entry.message in seen)
                    ):
                        continue
                    seen = {entry.message} | (seen if entry.timestamp == last else set())
                    last = entry.timestamp
                    yield entry.source != "stdout", entry.message
                return
        except ModalUnavailable:
            if ended.wait(RECONNECT_INTERVAL_S):
                return


T = TypeVar("T")

CANCEL_TIMEOUT_S = 5.0


class Cancelled(BaseException):
    """The scope was left. Not an Exception: nothing that handles connection errors may catch it."""


class CancelScope:
    """Blocking requests to Modal from any thread; leaving the scope makes them raise Cancelled."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._is_left = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    async def _run(self) -> None:
        self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._leave.wait()  # asyncio.run then cancels the open requests and waits for them

    def __enter__(self) -> CancelScope:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_left = True
        self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(CANCEL_TIMEOUT_S)

    def wait(self, request: Coroutine[Any, Any, T]) -> T:
        """Return the result of ``request``, or raise its error."""
        if self._is_left:
            request.close()
            raise Cancelled
        try:
            return asyncio.run_coroutine_threadsafe(request, self._loop).result()
        except BaseException as error:
            if self._is_left:
                raise Cancelled from error
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """Yield the items one by one."""
        while True:
            try:
                yield self.wait(_next(items))
            except StopAsyncIteration:
                return


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)


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
            for is_stderr, text in stream_log(self.app, self.ended, self.scope):
                stream = sys.stderr if is_stderr else sys.stdout
                if not self.write(stream, text):
                    return
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
        self, target: ModalTarget, handle: LaunchHandle, ended: threading.Event, scope: CancelScope
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
                self.ended.wait(RECONNECT_INTERVAL_S)
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
                    self.ended.wait(RECONNECT_INTERVAL_S)
                    continue
                state = recorded or state
            self.state = state
            self.ended.set()
            return

    def _poll(self) -> CallState:
        if self.call:
            return poll_call(self.call, CALL_POLL_S, self.scope)
        # The client of this launch ended before it recorded the call: the container records it.
        run = self.target.read(self.handle.run)
        if run.app == self.handle.location and run.call:
            self.call = run.call
            return CallState(True)
        if is_app_active(self.handle.location):
            self.ended.wait(RECONNECT_INTERVAL_S)
            return CallState(True)
        return CallState(False, error="the launch was interrupted before its call started")

    def _recorded_end(self) -> CallState | None:
        """Return the end that the run's record has for this call; None while it has none."""
        with suppress(Exception):
            log = self.target.read(self.handle.run).log
            if log.call == self.call and log.status is not None:
                return CallState(False, {"status": log.status, "reason": log.reason})
        return None


def _exit_status(target: ModalTarget, handle: LaunchHandle, state: CallState) -> int | None:
    """Return the job's exit status, None if unknown; print the reason if Modal ended the call."""
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
