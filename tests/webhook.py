"""A local webhook that records the messages."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATH = "/hook/t0ken"


class Endpoint(ThreadingHTTPServer):
    """A webhook that records ``bodies``, and replies with ``status`` once ``answer`` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        self.bodies: list[dict[str, str]] = []
        self.answer = threading.Event()
        self.answer.set()
        self.status = 200
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                endpoint.bodies.append(json.loads(body))
                endpoint.answer.wait(30)
                self.send_response(endpoint.status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{PATH}"


def up(endpoint: Endpoint) -> None:
    """Leave it as it is."""


def slow(endpoint: Endpoint) -> None:
    """Let it never answer."""
    endpoint.answer.clear()


def down(endpoint: Endpoint) -> None:
    """Let it refuse connections."""
    endpoint.shutdown()
    endpoint.server_close()
