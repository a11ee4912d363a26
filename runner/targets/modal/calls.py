"""Function calls on Modal, found by their id from any terminal, on any machine, at any time.

Output is read from the app, which has only this one call: Modal's own lines (waiting for a machine,
preempted, failed to start) belong to no call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from runner.errors import ModalUnavailable
from runner.project import PROJECT
from runner.targets.modal.client import translate_modal_errors

if TYPE_CHECKING:
    from datetime import datetime

RECONNECT_INTERVAL_S = 5.0  # while Modal can't be reached, for example on a laptop that slept

CANCELLED = "cancelled"

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
            except exception.FunctionTimeoutError as error:
                return CallState(False, error=str(error), attempts_used_up=True)
            except exception.OutputExpiredError:
                return CallState(False, error="it ended more than a week ago")
            except TimeoutError:
                return CallState(True)
            except AttemptUnfinished as error:
                return CallState(False, error=str(error), attempts_used_up=True)
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
