"""Sandboxes: containers without a function, in which a client runs commands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from . import limits, processes
from .container_files import ContainerFiles
from .exec_process import ExecProcess
from .executor import Container, ProcessExecutor
from .ids import new_id
from .images import Images
from .secret_values import Secrets
from .settings import Settings
from .tasks import Task

Result = api_pb2.GenericResult
DEFAULT_COMMAND = ("sleep", "172800")
DEFAULT_TIMEOUT_S = 300  # seconds


@dataclass
class Sandbox:
    id: str
    task_id: str
    app_id: str
    definition: api_pb2.Sandbox
    container: Container
    tags: dict[str, str]
    created_at: float
    main: ExecProcess = field(default_factory=ExecProcess)
    execs: dict[str, ExecProcess] = field(default_factory=dict)
    result: Result | None = None
    active_at: float = field(default_factory=time.monotonic)

    def has_ended(self) -> bool:
        return self.result is not None


class Sandboxes:
    """Start sandboxes, run commands in them, and end them.

    `sandbox_requests.py` has the client's requests, `command_router.py` its commands.
    """

    def __init__(
        self,
        settings: Settings,
        files: ContainerFiles,
        images: Images,
        secrets: Secrets,
        executor: ProcessExecutor,
    ) -> None:
        self.scratch = settings.scratch
        self._files = files
        self._images = images
        self._secrets = secrets
        self._watches: set[asyncio.Task[None]] = set()
        self.executor = executor
        self.sandboxes: dict[str, Sandbox] = {}
        self.tasks: Mapping[str, Task] = {}  # containers of functions
        self._entered: dict[str, Sandbox] = {}
        self.url = ""

    def of_task(self, task_id: str) -> Sandbox:
        for sandbox in self.sandboxes.values():
            if sandbox.task_id == task_id:
                return sandbox
        task = self.tasks.get(task_id)
        if task is None or task.container is None or not task.alive:
            raise GRPCError(Status.NOT_FOUND, f"no container runs as {task_id}")
        if task_id not in self._entered:  # a function's container, in which a client runs a command
            sandbox = Sandbox(
                task_id, task_id, "", api_pb2.Sandbox(), task.container, {}, time.time()
            )
            self._entered[task_id] = sandbox
        return self._entered[task_id]

    def environment(
        self, sandbox: Sandbox, sources: list[api_pb2.SecretSource], pty: api_pb2.PTYInfo | None
    ) -> dict[str, str]:
        env = dict(sandbox.container.env)
        for source in sources:
            if source.secret_id:
                env.update(self._secrets.values([source.secret_id]))
            env.update(source.env.contents)
        if pty is not None:
            env["TERM"] = pty.env_term or "xterm"
        return env

    async def end(self, sandbox: Sandbox, status: int) -> None:
        if sandbox.result is None:
            sandbox.result = Result(status=status)  # type: ignore[arg-type]
            await asyncio.to_thread(processes.kill, sandbox.task_id)
            await asyncio.to_thread(self._files.discard, sandbox.task_id)

    async def stop_app(self, app_id: str) -> None:
        for sandbox in self.sandboxes.values():
            if sandbox.app_id == app_id:
                await self.end(sandbox, Result.GENERIC_STATUS_TERMINATED)

    async def shut_down(self) -> None:
        for watch in list(self._watches):
            watch.cancel()
        for sandbox in self.sandboxes.values():
            await self.end(sandbox, Result.GENERIC_STATUS_TERMINATED)

    async def start(
        self,
        app_id: str,
        definition: api_pb2.Sandbox,
        tags: dict[str, str],
        sources: list[api_pb2.SecretSource],
        old: bool,
    ) -> Sandbox:
        limits.check_gpu(definition.resources.gpu_config)
        limits.check_timeout(definition.timeout_secs)
        task_id = new_id("ta") + ("" if old else "V")
        env = self._files.environment(task_id, definition.image_id, list(definition.secret_ids))
        for name in [
            name for name in env if name.startswith("MODAL_OVERRIDE") or name == "MODAL_SERVER_URL"
        ]:
            del env[name]  # a sandbox is not trusted: no access to the server
        folder = self._files.new_folder(task_id)
        container = Container(
            task_id=task_id,
            image_id=definition.image_id,
            folder=folder,
            tree=self._files.tree(folder, definition.image_id, list(definition.mount_ids)),
            command=[],
            env=env,
            workdir=definition.workdir or self._images.workdir(definition.image_id) or "/root",
            views=self._files.views(folder, list(definition.volume_mounts)),
        )
        sandbox_id = new_id("sb") + (
            "" if old else "v2"
        )  # the client recognizes the version by the length
        sandbox = Sandbox(sandbox_id, task_id, app_id, definition, container, tags, time.time())
        env.update(self.environment(sandbox, sources, None))
        env.update(definition.environment_variables.contents)
        self.sandboxes[sandbox.id] = sandbox
        command = list(definition.entrypoint_args) or list(DEFAULT_COMMAND)
        await self.run(sandbox, sandbox.main, command, env, container.workdir, None)
        watch = asyncio.ensure_future(self._watch(sandbox))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        return sandbox

    async def run(
        self,
        sandbox: Sandbox,
        process: ExecProcess,
        command: list[str],
        env: dict[str, str],
        workdir: str,
        size: tuple[int, int] | None,
    ) -> None:
        """Start a command in the sandbox's file system."""
        container = Container(
            task_id=sandbox.task_id,
            image_id=sandbox.container.image_id,
            folder=sandbox.container.folder,
            tree=sandbox.container.tree,
            command=command[1:],
            env=env,
            workdir=workdir or sandbox.container.workdir,
            views=sandbox.container.views,
            program=command[0],
        )
        await process.start(self.executor, container, size)

    async def _watch(self, sandbox: Sandbox) -> None:
        """End a sandbox at its time limit, when idle too long, or after its main process."""
        timeout = sandbox.definition.timeout_secs or DEFAULT_TIMEOUT_S
        idle = sandbox.definition.idle_timeout_secs
        started = time.monotonic()
        while not sandbox.has_ended():
            await sandbox.main.wait(0.1)
            if sandbox.has_ended():
                return
            now = time.monotonic()
            if any(process.code is None for process in sandbox.execs.values()):
                sandbox.active_at = now
            if sandbox.main.code is not None:
                status = (
                    Result.GENERIC_STATUS_FAILURE
                    if sandbox.main.code
                    else Result.GENERIC_STATUS_SUCCESS
                )
                sandbox.result = Result(status=status, exitcode=sandbox.main.code)
                await asyncio.to_thread(processes.kill, sandbox.task_id)
                await asyncio.to_thread(self._files.discard, sandbox.task_id)
            elif now - started > timeout:
                await self.end(sandbox, Result.GENERIC_STATUS_TIMEOUT)
            elif idle and now - sandbox.active_at > idle:
                await self.end(sandbox, Result.GENERIC_STATUS_IDLE_TIMEOUT)

    def get(self, sandbox_id: str) -> Sandbox:
        sandbox = self.sandboxes.get(sandbox_id)
        if sandbox is None:
            raise GRPCError(Status.NOT_FOUND, f"Sandbox with ID '{sandbox_id}' not found")
        return sandbox
