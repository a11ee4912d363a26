"""A proxy between client and stand-in that can cut or freeze its connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from urllib.parse import urlsplit


class FlakyProxy:
    """A proxy that copies bytes between its address ``url`` and ``server``."""

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self.server = (parts.hostname or "", parts.port or 0)
        self._open: list[socket.socket] = []
        self._entry: socket.socket | None = None
        self._port = 0
        self._flows = threading.Event()
        self._flows.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def restore(self) -> None:
        """Pass connections through."""
        self._entry = socket.create_server(("127.0.0.1", self._port))
        self._port = self._entry.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._entry,), daemon=True).start()

    def cut(self) -> None:
        """Close every connection and refuse new ones."""
        self._flows.set()
        if self._entry is not None:
            with contextlib.suppress(OSError):
                self._entry.shutdown(socket.SHUT_RDWR)
            self._entry.close()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def freeze(self) -> None:
        """Keep every connection open without passing data, as on a laptop that slept."""
        self._flows.clear()

    def __enter__(self) -> FlakyProxy:
        self.restore()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cut()

    def _accept(self, entry: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = entry.accept()
                there = socket.create_connection(self.server)
                self._open += [here, there]
                for ends in ((here, there), (there, here)):
                    threading.Thread(target=self._copy, args=ends, daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
