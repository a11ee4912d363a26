"""Function calls on Modal, found again by their id from any terminal, machine and day.

What is printed is asked of the app, which has this one call alone: Modal's own lines (a machine is waited for, was taken
back, could not start) belong to no call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from runner.errors import ModalUnavailable
from runner.targets.modal.client import translate_modal_errors

if TYPE_CHECKING:
    from datetime import datetime

OFFLINE = 5.0  # seconds between two questions while Modal can't be reached: a laptop that slept

CANCELLED = "cancelled"


@dataclass(frozen=True)
class CallState:
    """``alive``: it waits for a machine or works. Else ``value`` is what the body returned, or ``error`` why
    it gave none."""

    alive: bool
    value: dict[str, Any] | None = None
    error: str = ""
    attempts_used_up: bool = False


def look(call: str, seconds: float = 0.0, asked: CancelScope | None = None) -> CallState:
    """How the call stands, waited for at most ``seconds``. Raises Unavailable where Modal can't be asked."""
    import modal
    from modal import exception

    from runner.targets.modal.entrypoint import AttemptOver

    try:
        with translate_modal_errors():
            try:
                found = modal.FunctionCall.from_id(call)
                value = (
                    asked.ask(found.get.aio(timeout=seconds))
                    if asked
                    else found.get(timeout=seconds)
                )
            except exception.FunctionTimeoutError as error:
                return CallState(False, error=str(error), attempts_used_up=True)
            except exception.OutputExpiredError:
                return CallState(False, error="it ended more than a week ago")
            except TimeoutError:
                return CallState(True)
            except AttemptOver as error:
                return CallState(False, error=str(error), attempts_used_up=True)
            except (
                exception.InternalFailure
            ) as error:  # a container that was lost, after all retries
                return CallState(False, error=f"Modal lost it: {error}", attempts_used_up=True)
            except exception.InputCancellation:
                return CallState(False, error=CANCELLED)
            except exception.RemoteError as error:
                return CallState(
                    False, error=CANCELLED if "cancelled by user" in str(error) else str(error)
                )
            except exception.ExecutionError as error:  # what the body gave can't be read here
                return CallState(False, error=str(error))
            except exception.PermissionDeniedError:  # a run that was pushed from there
                return CallState(False, error="its last call was in another workspace")
    except FileNotFoundError:
        return CallState(False, error="Modal does not know the call any more")
    except ModalUnavailable:
        raise
    except Exception as error:  # what the body raised comes out of get() as it was
        if type(error).__module__.startswith(("runner.errors", "modal")):
            raise
        return CallState(False, error=f"{type(error).__name__}: {error}")
    return CallState(False, value=value if isinstance(value, dict) else {})


def cancel(call: str, kill: bool = False) -> None:
    """End the call without a retry; with ``kill`` its container too, at once."""
    import modal

    with translate_modal_errors():
        modal.FunctionCall.from_id(call).cancel(terminate_containers=kill)


def log(app: str, lines: int) -> list[str]:
    """The last lines that Modal has of what the app printed; it keeps them a day on the smallest plan."""
    import modal

    try:
        with translate_modal_errors():
            entries = list(modal.App.lookup(app).logs.tail(max(lines, 1)))
    except FileNotFoundError:  # Modal does not know it any more
        return []
    return "".join(entry.message for entry in entries).splitlines()[-lines:] if lines else []


def stream(
    app: str, over: threading.Event, asked: CancelScope | None = None
) -> Iterator[tuple[bool, str]]:
    """What the app prints until it is done: (whether on stderr, text). Where the connection is lost it goes on behind the
    last line, until ``over``."""
    import modal

    last: datetime | None = None
    told: set[str] = set()  # at that time
    while True:
        try:
            with translate_modal_errors():
                logs = modal.App.lookup(app).logs
                missed = logs.fetch(since=last) if last is not None else ()
                new = asked.each(logs.stream.aio()) if asked else logs.stream()
                for entry in chain(missed, new):
                    if last is not None and (
                        entry.timestamp < last
                        or (entry.timestamp == last and entry.message in told)
                    ):
                        continue
                    told = {entry.message} | (told if entry.timestamp == last else set())
                    last = entry.timestamp
                    yield entry.source != "stdout", entry.message
                return
        except ModalUnavailable:
            if over.wait(OFFLINE):
                return


T = TypeVar("T")

ENOUGH = 5.0  # seconds that giving them up may take


class Cancelled(BaseException):
    """The question was given up. No Exception: nothing that mends a connection may catch it."""


class CancelScope:
    """While entered, ``ask`` and ``each`` wait in any thread; leaving makes them raise ``Left``."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._is_left = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._stay()), daemon=True)

    async def _stay(self) -> None:
        self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._leave.wait()  # asyncio.run then cancels what is still asked, and waits for that

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
        self._thread.join(ENOUGH)

    def ask(self, question: Coroutine[Any, Any, T]) -> T:
        """What it answers, or raises."""
        if self._is_left:
            question.close()
            raise Cancelled
        try:
            return asyncio.run_coroutine_threadsafe(question, self._loop).result()
        except BaseException as error:
            if self._is_left:
                raise Cancelled from error
            raise

    def each(self, answers: AsyncIterator[T]) -> Iterator[T]:
        """One answer after the other."""
        while True:
            try:
                yield self.ask(_next(answers))
            except StopAsyncIteration:
                return


async def _next(answers: AsyncIterator[T]) -> T:
    return await anext(answers)
