"""The server: all services on one event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import Coroutine
from typing import Any

from grpclib.server import Server as GrpcServer
from modal_proto import api_pb2
from modal_proto.api_grpc import ModalClientBase
from modal_proto.task_command_router_grpc import TaskCommandRouterBase

from .apps import App, Apps
from .billing import Billing
from .calls import DONE, SYNC, Call, Calls
from .command_router import CommandRouter
from .container_files import ContainerFiles
from .container_requests import ContainerRequests
from .containers import Containers
from .content import Blobs, Content, MountFiles
from .executor import Executor, ProcessExecutor
from .faults import Faults
from .functions import Functions
from .http_servers import HttpServers
from .images import Images
from .logs import Logs
from .mounts import Mounts
from .record import Recorder
from .rpc import Problems, Service
from .sandbox_requests import SandboxRequests
from .sandboxes import Sandboxes
from .secret_values import Secrets
from .settings import Settings
from .tasks import Task
from .volumes import Volumes
from .web import Control, Web

ADDRESS_FILE = "address.json"  # a test in another process finds the stand-in by this file
EXPIRY_INTERVAL_S = 0.5  # seconds

# grpclib prints a traceback for each client that leaves during a long poll. `problems` has
# the real errors.
logging.getLogger("grpclib.server").setLevel(logging.CRITICAL)


class Server:
    """The stand-in's server. Call its methods on the event loop that started it."""

    def __init__(
        self, settings: Settings, control: Control, executor: Executor | None = None
    ) -> None:
        settings.create_folders()
        self.settings = settings
        self.recorder = Recorder(settings.state / "requests.jsonl")
        self.faults = Faults()
        self.problems = Problems([], [])
        self.content = Content(settings)
        self.blobs = Blobs(settings)
        self.volumes = Volumes(settings, self.content)
        self.mounts = Mounts(settings, self.content)
        self.images = Images(settings, self.mounts)
        self.secrets = Secrets(settings.secrets)
        self.functions = Functions()
        self.apps = Apps(settings, self.functions, self._client_left, self._stop_app)
        self.calls = Calls(settings, self.functions)
        self.logs = Logs(settings.state / "logs.jsonl", self.apps.is_done)
        self.files = ContainerFiles(
            settings, self.apps, self.images, self.mounts, self.secrets, self.volumes
        )
        self.containers = Containers(
            settings,
            self.functions,
            self.calls,
            self.logs,
            self.files,
            executor or ProcessExecutor(settings),
        )
        self.calls.on_finished = self._call_finished
        self.containers.on_ended = self._container_ended
        self.web = Web(settings, self.content, self.blobs, self.volumes, self.faults, control)
        self.http_servers = HttpServers(self.functions, self.containers)
        services = [
            self.blobs,
            MountFiles(self.content, self.blobs),
            self.volumes,
            self.mounts,
            self.images,
            self.secrets,
            self.functions,
            self.apps,
            self.calls,
            self.logs,
            self.http_servers,
            ContainerRequests(settings, self.containers, self.calls),
            Billing(self.apps, self.containers),
        ]
        self.sandboxes = Sandboxes(
            settings, self.files, self.images, self.secrets, ProcessExecutor(settings)
        )
        self.sandboxes.tasks = self.containers.tasks
        router = CommandRouter(self.sandboxes)
        self.services = [
            Service(
                ModalClientBase,
                [*services, SandboxRequests(self.sandboxes)],
                self.recorder,
                self.faults,
                self.problems,
                settings.delay,
            ),
            Service(TaskCommandRouterBase, [router], self.recorder, self.faults, self.problems),
        ]
        self._grpc = GrpcServer(self.services)
        self._background: set[asyncio.Task[None]] = set()
        self.url = ""

    async def start(self) -> None:
        web_url = await self.web.start()
        self.blobs.url = self.volumes.blocks.url = web_url
        await self._grpc.start("127.0.0.1", self.settings.port)
        listening: Any = self._grpc._server  # grpclib does not return the port
        port = listening.sockets[0].getsockname()[1]
        self.url = self.files.server_url = self.sandboxes.url = f"http://127.0.0.1:{port}"
        self._spawn(self._expire())
        address = self.settings.state / ADDRESS_FILE
        facts = {"server": self.url, "control": web_url, "pid": os.getpid()}
        address.write_text(
            json.dumps({**facts, "heartbeat_interval": self.settings.heartbeat_interval})
        )

    async def stop(self) -> None:
        for task in list(self._background):
            task.cancel()
        self.http_servers.stop()
        await self.containers.shut_down()
        await self.sandboxes.shut_down()
        self._grpc.close()
        for service in self.services:
            service.disconnect(containers_too=True)
        await self.web.stop()
        (self.settings.state / ADDRESS_FILE).unlink(missing_ok=True)
        self.recorder.close()
        self.logs.close()
        shutil.rmtree(self.settings.scratch, ignore_errors=True)

    def disconnect(self) -> int:
        """Close the connections of all clients, and return their number."""
        return sum(service.disconnect() for service in self.services)

    # --- when something ends

    def _client_left(self, app: App) -> None:
        """Cancel the calls that a client waited for; a detached app keeps its spawned calls."""
        for call in self.calls.of_app(app.id):
            if call.invocation in SYNC and call.unfinished:
                self.calls.cancel(call, terminate=True)
        self._stop_if_idle(app)

    def _call_finished(self, call: Call) -> None:
        app = self.apps.apps.get(call.app_id)
        if app is not None:
            self._stop_if_idle(app)

    def _container_ended(self, task: Task) -> None:
        self.logs.pulse.beat()

    def _stop_if_idle(self, app: App) -> None:
        busy = any(call.unfinished for call in self.calls.of_app(app.id))
        if app.state == api_pb2.APP_STATE_DETACHED_DISCONNECTED and not busy:
            self.apps.stop(app)

    def _stop_app(self, app: App) -> None:
        for call in self.calls.of_app(app.id):
            for item in call.inputs.values():
                if item.state != DONE:
                    result = api_pb2.GenericResult(
                        status=api_pb2.GenericResult.GENERIC_STATUS_TERMINATED,
                        exception="App was stopped",
                    )
                    self.calls.finish(item, result)
        self._spawn(self._finish_app(app))

    async def _finish_app(self, app: App) -> None:
        await self.containers.stop_app(app.id)
        await self.sandboxes.stop_app(app.id)
        self.apps.stopped(app)
        self.logs.pulse.beat()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_INTERVAL_S)
            self.apps.expire()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
