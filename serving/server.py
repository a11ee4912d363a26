"""Serve a trained network through an OpenAI-compatible API, with a web page to try it.

    python -m serving.server                              # the newest run, http://127.0.0.1:8000
    python -m serving.server --name my_run --port 8080
    python -m serving.server --model exported/            # also gpt2 or hf://OWNER/NAME

SERVE_TOKEN, if it is set, is the API key that requests need. Requests are generated in one batch;
those above --slots wait.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import FrameType
from typing import TYPE_CHECKING

from job.arguments import leave, parse, report, run, run_parser
from job.exit_status import ExitStatus, UserError
from job.ports import listen
from job.recipe import ModelConfig
from serving.load import load_model

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from serving.batcher import Batcher
    from serving.load import LoadedModel

INSTALL = "pip install 'gpt-runner[serve]'"
MAX_SLOTS = 32
MAX_CACHE_BYTES = 4 << 30  # keys and values of all slots
SHUTDOWN_S = 2  # for texts that are being streamed


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, serve until a signal, and return the exit status."""
    parser = run_parser("server", __doc__ or "")
    parser.add_argument("--model", metavar="DIR", help="an exported folder, or gpt2")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--slots", type=int, metavar="N", help="texts generated at once")
    return run(_main, parse(parser, argv))


def _main(arguments: Namespace) -> ExitStatus:
    try:
        import uvicorn
        from starlette.applications import Starlette  # noqa: F401
    except ImportError:
        raise UserError(f"serve needs starlette and uvicorn; install them: {INSTALL}") from None
    from serving.batcher import Batcher

    listener = listen(arguments.host, arguments.port)  # fails before the network is loaded
    model = load_model(arguments.name, arguments.model, arguments.overrides, arguments.device)
    token = os.environ.get("SERVE_TOKEN") or None
    host = os.environ.get("PUBLISHED_AT") or arguments.host  # of a container's port
    is_local = _is_loopback(host)
    batcher = Batcher(model, arguments.slots or _slots(model.network.config))
    app = make_app(model, batcher, token, check_host=is_local)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=SHUTDOWN_S
    )
    if not is_local and token is None:
        report(f"warning: {host} can be reached from other machines; set SERVE_TOKEN")

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            batcher.stop()  # streams end with an error; otherwise uvicorn cuts them
            super().handle_exit(sig, frame)

    http_server = Server(config)
    # uvicorn raises a signal again after its shutdown, which is a success here.
    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, http_server.handle_exit)
    http_server.run(sockets=[listener])
    return ExitStatus.DONE


def make_app(
    model: LoadedModel, batcher: Batcher, token: str | None = None, check_host: bool = True
) -> Starlette:
    """Return the application. ``check_host`` refuses names that only DNS points at this machine."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import ClientDisconnect

    from serving.api import BearerToken, error_response, routes

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        batcher.start(asyncio.get_running_loop())
        report(f"serving {model.name}; Ctrl-C stops it")
        yield
        batcher.stop()
        batcher.join()

    middleware = [Middleware(BearerToken, token=token)] if token else []
    if check_host:
        hosts = ["localhost", "127.0.0.1", "[::1]", "testserver"]
        middleware.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=hosts))
    return Starlette(
        routes=routes(model, batcher),
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers=dict.fromkeys((HTTPException, ClientDisconnect), error_response),
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _slots(model: ModelConfig) -> int:
    """Return the number of texts whose keys and values fit into MAX_CACHE_BYTES."""
    text_bytes = 2 * model.n_layer * model.block_size * model.n_embd * 4
    return max(1, min(MAX_SLOTS, MAX_CACHE_BYTES // text_bytes))


if __name__ == "__main__":
    leave(main())
