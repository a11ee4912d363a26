"""Dispatch a gRPC request to the method of its name: record it, apply a fault, answer.

A service is any object whose methods have the names of RPCs. A method takes the request and a
`Caller` and returns the response; for a streaming response it is an async generator.
"""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler
from grpclib.exceptions import StreamTerminatedError
from h2.exceptions import StreamClosedError

from .faults import Faults
from .record import Recorder

TASK_HEADER = "x-standin-task-id"  # identifies a container; on Modal, each has its own socket

ENVIRONMENT = "main"  # the workspace has one

# A client repeats a request after a lost answer with the same key: execute it only once.
EXECUTED_ONCE = {
    "AppCreate",
    "BlobCreate",
    "FunctionMap",
    "FunctionPutInputs",
    "FunctionRetryInputs",
    "SandboxCreateV2",
    "VolumeCopyFiles",
    "VolumeCopyFiles2",
    "VolumePutFiles",
    "VolumePutFiles2",
    "VolumeRemoveFile",
    "VolumeRemoveFile2",
}
MAX_REMEMBERED_KEYS = 2000


@dataclass(frozen=True)
class Caller:
    """The sender of a request. `task` is a container's id; empty for a client."""

    task: str
    metadata: Any
    transport: asyncio.BaseTransport | None


class Service:
    """A grpclib service with every RPC of a generated base class."""

    def __init__(
        self,
        base: type[Any],
        services: Sequence[object],
        recorder: Recorder,
        faults: Faults,
        problems: Problems,
        delay: float = 0.0,
    ) -> None:
        self._base = base
        self._delay = delay
        self._services = services
        self._recorder = recorder
        self._faults = faults
        self._problems = problems
        self._answers: OrderedDict[str, Message] = OrderedDict()
        self.connections: dict[
            asyncio.BaseTransport, bool
        ] = {}  # transport: whether it is a container's

    def __mapping__(self) -> dict[str, Handler]:
        names = {name for name in dir(self._base) if name[0].isupper()}
        methods = {name: getattr(self._base, name) for name in names}
        concrete: Any = type("Concrete", (self._base,), methods)
        concrete.__abstractmethods__ = frozenset()
        mapping: dict[str, Handler] = {}
        for path, handler in concrete().__mapping__().items():
            name = path.rsplit("/", 1)[1]
            function = self._handler(name, handler)
            mapping[path] = Handler(
                function, handler.cardinality, handler.request_type, handler.reply_type
            )
        return mapping

    def disconnect(self, containers_too: bool = False) -> int:
        """Cut the connections; returns how many there were."""
        doomed = [
            t for t, is_container in self.connections.items() if containers_too or not is_container
        ]
        for transport in doomed:
            transport.abort()  # type: ignore[attr-defined]
        return len(doomed)

    def _handler(self, name: str, handler: Handler) -> Callable[[Any], Any]:
        method = next((getattr(s, name) for s in self._services if hasattr(s, name)), None)
        takes_stream = handler.cardinality in (Cardinality.STREAM_UNARY, Cardinality.STREAM_STREAM)

        async def handle(stream: Any) -> None:
            caller = self._caller(stream)
            if takes_stream:
                request = None
                self._recorder.add(name, handler.request_type(), caller.task)
            else:
                request = await stream.recv_message()
                self._recorder.add(name, request, caller.task)
            if self._delay and not caller.task:
                await asyncio.sleep(self._delay)
            fault = self._faults.draw(name, str(request) if self._faults.needs_text() else "")
            if fault == "disconnect":
                _close(caller)
                return
            if fault is not None and fault != "lost":
                raise GRPCError(Status[fault], f"injected: {fault}")
            if method is None:
                self._problems.unimplemented.append(name)
                raise GRPCError(
                    Status.UNIMPLEMENTED, f"the stand-in for Modal does not imitate {name}"
                )
            if (environment := getattr(request, "environment_name", "")) not in ("", ENVIRONMENT):
                raise GRPCError(Status.NOT_FOUND, f"Environment '{environment}' not found")
            subject = stream if takes_stream else request
            try:
                await self._answer(name, method, subject, stream, caller, fault)
            except GRPCError:
                raise
            except (StreamClosedError, StreamTerminatedError, ConnectionError):
                return  # the client left meanwhile
            except Exception as error:
                self._problems.errors.append(f"{name}: {traceback.format_exc()}")
                raise GRPCError(
                    Status.INTERNAL, f"{name} failed in the stand-in: {error!r}"
                ) from error

        return handle

    async def _answer(
        self, name: str, method: Any, request: Any, stream: Any, caller: Caller, fault: str | None
    ) -> None:
        if inspect.isasyncgenfunction(method):
            async for item in method(request, caller):
                await stream.send_message(item)
            return
        key = stream.metadata.get("x-idempotency-key") if name in EXECUTED_ONCE else None
        response = self._answers.get(key) if key else None
        if response is None:
            response = await method(request, caller)
            if key:
                self._answers[key] = response
                if len(self._answers) > MAX_REMEMBERED_KEYS:
                    self._answers.popitem(last=False)
        if fault == "lost":
            _close(caller)
            return
        await stream.send_message(response)

    def _caller(self, stream: Any) -> Caller:
        task = stream.metadata.get(TASK_HEADER, "")
        transport = getattr(getattr(stream, "_stream", None), "_transport", None)
        if transport is not None:
            self.connections[transport] = bool(task)
            for closed in [t for t in self.connections if t.is_closing()]:
                del self.connections[closed]
        return Caller(task, stream.metadata, transport)


@dataclass
class Problems:
    """Errors of the stand-in and RPCs that it does not implement."""

    unimplemented: list[str]
    errors: list[str]


def _close(caller: Caller) -> None:
    if caller.transport is not None:
        caller.transport.abort()  # type: ignore[attr-defined]
