"""Servers (`app.server`): an address whose first connection starts a container.

The stand-in passes bytes on to the port of the container, which has this machine's network. A
container ends after the idle time without a connection, as Modal scales to zero.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from google.protobuf.empty_pb2 import Empty

from .containers import Containers
from .functions import Function, Functions
from .rpc import Caller
from .tasks import Task

POLL_INTERVAL_S = 0.05  # seconds
REFUSAL = (
    b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\n"
    b"modal-http: missing credentials for proxy authorization"
)


class HttpServers:
    """The addresses of all servers."""

    def __init__(self, functions: Functions, containers: Containers) -> None:
        self._containers = containers
        self._listeners: dict[str, asyncio.Server] = {}
        self._ready: set[str] = set()  # containers
        self._connections: dict[str, int] = {}
        functions.on_server = self.listen

    async def listen(self, function: Function) -> str:
        """Return the function's address."""
        if function.id not in self._listeners:
            self._listeners[function.id] = await asyncio.start_server(
                lambda reader, writer: self._connected(function, reader, writer), "127.0.0.1", 0
            )
        port = self._listeners[function.id].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    async def ContainerServerLifecycleReady(self, request: object, caller: Caller) -> Empty:
        task = self._containers.get(caller.task)
        task.ready = True
        self._ready.add(task.id)
        return Empty()

    def stop(self) -> None:
        for listener in self._listeners.values():
            listener.close()

    async def _connected(
        self, function: Function, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        config, head = function.definition.http_config, b""
        if not config.unauthenticated:  # Modal's proxy answers, and starts no container
            with suppress(asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
            if not {b"modal-key", b"modal-secret"} <= {
                line.partition(b":")[0].lower() for line in head.split(b"\r\n")
            }:
                writer.write(REFUSAL)
                await writer.drain()
                writer.close()
                return
        task = await self._container(function)
        if task is None:
            writer.close()
            return
        self._connections[task.id] = self._connections.get(task.id, 0) + 1
        with suppress(OSError):
            inner = await asyncio.open_connection("127.0.0.1", config.port)
            inner[1].write(head)
            await asyncio.gather(_pump(reader, inner[1]), _pump(inner[0], writer))
        writer.close()
        self._connections[task.id] -= 1
        asyncio.get_running_loop().call_later(function.idle_window, self._end_if_idle, task)

    async def _container(self, function: Function) -> Task | None:
        """Return a container that accepts connections; None if it failed."""
        alive = [t for t in self._containers.tasks.values() if t.function is function and t.alive]
        task = alive[0] if alive else self._containers.start_server(function)
        while task.alive and task.id not in self._ready:
            await asyncio.sleep(POLL_INTERVAL_S)
        return task if task.alive else None

    def _end_if_idle(self, task: Task) -> None:
        if task.alive and not self._connections.get(task.id):
            self._containers.end(task, "stopped")


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
