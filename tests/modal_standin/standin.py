"""The stand-in as a context manager: a server in a thread of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

from .api import Api, StandinError
from .controls import Controls
from .executor import Executor
from .server import Server
from .settings import Settings

START_TIMEOUT_S = 30.0  # seconds
STOP_TIMEOUT_S = 60.0


class ModalStandin(Api):
    """A stand-in for Modal with its state under a folder.

        with ModalStandin(tmp_path) as modal:
            subprocess.run([...], env={**os.environ, **modal.environ})
            assert modal.recorded("FunctionCreate")

    The options are those of `Settings`. Leaving the block ends all containers.
    """

    def __init__(
        self,
        state: Path | str,
        *,
        executor: Executor | None = None,
        secrets: Mapping[str, Mapping[str, str]] | None = None,
        **options: Any,
    ) -> None:
        self.state = Path(state).resolve()
        self.settings = Settings(state=self.state, secrets=secrets or {}, **options)
        self._executor = executor
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="modal-standin", daemon=True)
        self._started: Future[None] = Future()
        self._server: Server | None = None
        self._controls: Controls | None = None

    def __enter__(self) -> ModalStandin:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return self._running().url

    @property
    def heartbeat_interval(self) -> float:
        return self.settings.heartbeat_interval

    def start(self) -> None:
        self._thread.start()
        self._started.result(START_TIMEOUT_S)

    def stop(self) -> None:
        """End all containers and the server, and keep the files."""
        server = self._running()
        asyncio.run_coroutine_threadsafe(server.stop(), self._loop).result(STOP_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_TIMEOUT_S)

    def call(self, method: str, **arguments: Any) -> Any:
        assert self._controls is not None
        work = asyncio.run_coroutine_threadsafe(
            self._controls.handle(method, arguments), self._loop
        )
        try:
            return work.result()
        except LookupError as error:
            raise StandinError(str(error)) from None

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._start())
        except BaseException as error:
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        self._loop.run_forever()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    async def _start(self) -> None:
        self._server = Server(self.settings, self._control, self._executor)
        self._controls = Controls(self._server)
        await self._server.start()

    async def _control(self, method: str, arguments: dict[str, Any]) -> Any:
        assert self._controls is not None
        return await self._controls.handle(method, arguments)

    def _running(self) -> Server:
        if self._server is None:
            raise StandinError("the stand-in is not running")
        return self._server
