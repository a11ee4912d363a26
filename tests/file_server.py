"""A local HTTP server of files that can imitate a bad network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serve ``files``, with ranges. ``troubles`` has the faults of the next requests for a path.

    A number below 100 cuts the answer after so many bytes, a higher one is an HTTP status, and
    "no range" sends the whole file.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.troubles: dict[str, list[int | str]] = {}
        self.requests: list[tuple[str, str | None, str | None]] = []  # path, Range, Authorization

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        range_header = self.headers.get("Range")
        self.server.requests.append((self.path, range_header, self.headers.get("Authorization")))
        troubles = self.server.troubles.get(self.path) or [0]
        trouble = troubles.pop(0)
        body = self.server.files.get(self.path)
        if body is None or (isinstance(trouble, int) and trouble >= 400):
            self.send_error(trouble if isinstance(trouble, int) and trouble else 404)
            return
        start = (
            int(range_header.removeprefix("bytes=").rstrip("-"))
            if range_header and trouble != "no range"
            else 0
        )
        if range_header and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cut = isinstance(trouble, int) and trouble > 0
        self.wfile.write(body[start : start + trouble] if cut else body[start:])
        self.close_connection = True


@contextmanager
def serving() -> Iterator[FileServer]:
    """Run a server until the block ends."""
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
