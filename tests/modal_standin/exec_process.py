"""A process in a sandbox, with or without a terminal: output from any offset, input, status."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import termios
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any

from . import processes
from .executor import POLL_INTERVAL_S, Container, ProcessExecutor
from .pulse import Pulse

READ_BYTES = 64 * 1024  # bytes


class ExecProcess:
    """A process whose output is kept, so that a reader can resume at any offset."""

    def __init__(self) -> None:
        self.output: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        self.code: int | None = None
        self.written = 0  # bytes of stdin
        self.closed = False
        self.pulse = Pulse()
        self._process: asyncio.subprocess.Process | None = None
        self._stdin = -1
        self._work: asyncio.Task[None] | None = None

    async def start(
        self, executor: ProcessExecutor, container: Container, size: tuple[int, int] | None
    ) -> None:
        """Start it. With a `size` (rows, columns) it has a terminal and a single output stream."""
        if size is not None:
            controller, terminal = pty.openpty()
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
            self._process = await executor.spawn(container, terminal, terminal)
            os.close(terminal)
            self._stdin = controller
            readers = [self._read_terminal(controller)]
        else:
            incoming, self._stdin = os.pipe()
            self._process = await executor.spawn(container, incoming)
            os.close(incoming)
            assert self._process.stdout is not None
            assert self._process.stderr is not None
            readers = [self._read(self._process.stdout, 1), self._read(self._process.stderr, 2)]
        os.set_blocking(self._stdin, False)
        self._work = asyncio.ensure_future(self._run(readers))

    async def _run(self, readers: list[Coroutine[Any, Any, None]]) -> None:
        assert self._process is not None
        reading = [asyncio.ensure_future(reader) for reader in readers]
        while self._process.returncode is None and not processes.is_zombie(self._process.pid):
            await asyncio.sleep(POLL_INTERVAL_S)
        await asyncio.wait(reading, timeout=1)  # its background processes may keep the streams open
        for reader in reading:
            reader.cancel()
        code = await self._process.wait()
        self.close_input()
        self.code = code
        self.pulse.beat()

    async def _read(self, stream: asyncio.StreamReader, number: int) -> None:
        while data := await stream.read(READ_BYTES):
            self.output[number] += data
            self.pulse.beat()

    async def _read_terminal(self, terminal: int) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(terminal, readable.set)
        try:
            while True:
                await readable.wait()
                readable.clear()
                try:
                    data = os.read(terminal, READ_BYTES)
                except BlockingIOError:
                    continue
                except OSError:  # Linux: the last process closed the other end
                    return
                self.output[1] += data
                self.pulse.beat()
        finally:
            loop.remove_reader(terminal)

    async def read(self, number: int, offset: int) -> AsyncIterator[bytes]:
        """Yield the output of stdout (1) or stderr (2) from an offset until the process ends."""
        while True:
            ended = self.code is not None
            data = bytes(self.output[number][offset : offset + READ_BYTES])
            if data:
                offset += len(data)
                yield data
            elif ended:
                return
            else:
                await self.pulse.wait(10)

    async def write(self, offset: int, data: bytes, eof: bool) -> None:
        """Append to stdin, but write no byte before `offset` twice."""
        rest = data[max(0, self.written - offset) :]
        while rest and self.code is None and not self.closed:
            try:
                sent = os.write(self._stdin, rest)
            except BlockingIOError:
                await asyncio.sleep(POLL_INTERVAL_S)
                continue
            except OSError:
                break
            rest = rest[sent:]
            self.written += sent
        if eof:
            self.close_input()

    def close_input(self) -> None:
        if not self.closed:
            self.closed = True
            with suppress(OSError):
                os.close(self._stdin)

    async def wait(self, timeout: float) -> int | None:
        """Return its exit status, negative for a signal; None after `timeout` seconds."""
        deadline = asyncio.get_running_loop().time() + timeout
        while self.code is None and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await self.pulse.wait(left)
        return self.code
