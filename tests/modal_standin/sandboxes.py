"""Sandboxes: containers without a function, in which a client runs commands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from . import limits, processes
from .apps import unsigned_token
from .container_files import ContainerFiles
from .exec_process import ExecProcess
from .executor import Container, ProcessExecutor
from .ids import new_id
from .images import Images
from .rpc import Caller
from .secret_values import Secrets
from .settings import Settings

Result = api_pb2.GenericResult
DEFAULT_COMMAND = ("sleep", "172800")
DEFAULT_TIMEOUT = 300  # seconds


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

    @property
    def ended(self) -> bool:
        return self.result is not None


class Sandboxes:
    """The control plane's side. The commands run through `command_router.py`.

    The client uses the second version of each RPC, and the first for a sandbox with a GPU.
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
        self.url = ""

    def of_task(self, task_id: str) -> Sandbox:
        for sandbox in self.sandboxes.values():
            if sandbox.task_id == task_id:
                return sandbox
        raise GRPCError(Status.NOT_FOUND, f"no sandbox runs as {task_id}")

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

    async def _start(
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
        for name in [name for name in env if name.startswith("MODAL_OVERRIDE") or name == "MODAL_SERVER_URL"]:
            del env[name]  # a sandbox is not trusted: it gets no way back
        folder = self._files.new_folder(task_id)
        container = Container(
            task_id=task_id,
            image_id=definition.image_id,
            folder=folder,
            tree=self._files.tree(folder, list(definition.mount_ids)),
            command=[],
            env=env,
            workdir=definition.workdir or self._images.workdir(definition.image_id) or "/root",
            views=self._files.views(folder, list(definition.volume_mounts)),
        )
        sandbox_id = new_id("sb") + ("" if old else "v2")  # the client tells the versions by the length
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
        """End a sandbox that has lived, or idled, for too long, or whose main process has ended."""
        timeout = sandbox.definition.timeout_secs or DEFAULT_TIMEOUT
        idle = sandbox.definition.idle_timeout_secs
        started = time.monotonic()
        while not sandbox.ended:
            await sandbox.main.wait(0.1)
            if sandbox.ended:
                return
            now = time.monotonic()
            if any(process.code is None for process in sandbox.execs.values()):
                sandbox.active_at = now
            if sandbox.main.code is not None:
                status = Result.GENERIC_STATUS_FAILURE if sandbox.main.code else Result.GENERIC_STATUS_SUCCESS
                sandbox.result = Result(status=status, exitcode=sandbox.main.code)
                await asyncio.to_thread(processes.kill, sandbox.task_id)
                await asyncio.to_thread(self._files.discard, sandbox.task_id)
            elif now - started > timeout:
                await self.end(sandbox, Result.GENERIC_STATUS_TIMEOUT)
            elif idle and now - sandbox.active_at > idle:
                await self.end(sandbox, Result.GENERIC_STATUS_IDLE_TIMEOUT)

    def _get(self, sandbox_id: str) -> Sandbox:
        sandbox = self.sandboxes.get(sandbox_id)
        if sandbox is None:
            raise GRPCError(Status.NOT_FOUND, f"Sandbox with ID '{sandbox_id}' not found")
        return sandbox

    # --- requests

    async def SandboxCreateV2(
        self, request: api_pb2.SandboxCreateV2Request, caller: Caller
    ) -> api_pb2.SandboxCreateV2Response:
        sandbox = await self._start(
            request.app_id, request.definition, _tags(request.tags), list(request.secret_sources), old=False
        )
        return api_pb2.SandboxCreateV2Response(
            sandbox_id=sandbox.id,
            task_id=sandbox.task_id,
            metadata=_metadata(sandbox),
            command_router_access=api_pb2.CommandRouterAccess(jwt=unsigned_token(), url=self.url),
        )

    async def SandboxCreate(
        self, request: api_pb2.SandboxCreateRequest, caller: Caller
    ) -> api_pb2.SandboxCreateResponse:
        sandbox = await self._start(request.app_id, request.definition, _tags(request.tags), [], old=True)
        return api_pb2.SandboxCreateResponse(sandbox_id=sandbox.id, metadata=_metadata(sandbox))

    async def SandboxGetTaskId(
        self, request: api_pb2.SandboxGetTaskIdRequest, caller: Caller
    ) -> api_pb2.SandboxGetTaskIdResponse:
        sandbox = self._get(request.sandbox_id)
        if sandbox.result is not None:
            return api_pb2.SandboxGetTaskIdResponse(task_result=sandbox.result)
        return api_pb2.SandboxGetTaskIdResponse(task_id=sandbox.task_id)

    async def SandboxWait(
        self, request: api_pb2.SandboxWaitRequest, caller: Caller
    ) -> api_pb2.SandboxWaitResponse:
        sandbox = self._get(request.sandbox_id)
        deadline = time.monotonic() + request.timeout
        while sandbox.result is None and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return api_pb2.SandboxWaitResponse(result=sandbox.result, metadata=_metadata(sandbox))

    async def SandboxTerminate(
        self, request: api_pb2.SandboxTerminateRequest, caller: Caller
    ) -> api_pb2.SandboxTerminateResponse:
        sandbox = self._get(request.sandbox_id)
        existing = sandbox.result
        await self.end(sandbox, Result.GENERIC_STATUS_TERMINATED)
        return api_pb2.SandboxTerminateResponse(existing_result=existing)

    async def SandboxTagsSet(self, request: api_pb2.SandboxTagsSetRequest, caller: Caller) -> Empty:
        self._get(request.sandbox_id).tags = _tags(request.tags)
        return Empty()

    async def SandboxTagsGet(
        self, request: api_pb2.SandboxTagsGetRequest, caller: Caller
    ) -> api_pb2.SandboxTagsGetResponse:
        return api_pb2.SandboxTagsGetResponse(tags=_tag_messages(self._get(request.sandbox_id)))

    async def SandboxList(
        self, request: api_pb2.SandboxListRequest, caller: Caller
    ) -> api_pb2.SandboxListResponse:
        wanted = _tags(request.tags)
        found = [
            sandbox
            for sandbox in self.sandboxes.values()
            if (request.include_finished or sandbox.result is None)
            and request.app_id in ("", sandbox.app_id)
            and wanted.items() <= sandbox.tags.items()
            and not (request.before_timestamp and sandbox.created_at >= request.before_timestamp)
        ]
        infos = [
            api_pb2.SandboxInfo(
                id=s.id,
                app_id=s.app_id,
                created_at=s.created_at,
                tags=_tag_messages(s),
                task_info=api_pb2.TaskInfo(id=s.task_id, result=s.result),
                timeout_secs=s.definition.timeout_secs,
                idle_timeout_secs=s.definition.idle_timeout_secs,
                image_id=s.definition.image_id,
                metadata=_metadata(s),
            )
            for s in sorted(found, key=lambda s: -s.created_at)
        ]
        return api_pb2.SandboxListResponse(sandboxes=infos)

    async def SandboxGetLogs(
        self, request: api_pb2.SandboxGetLogsRequest, caller: Caller
    ) -> AsyncIterator[api_pb2.TaskLogsBatch]:
        sandbox = self._get(request.sandbox_id)
        number = 2 if request.file_descriptor == api_pb2.FILE_DESCRIPTOR_STDERR else 1
        offset = int(request.last_entry_id or 0)
        async for data in sandbox.main.read(number, offset):
            offset += len(data)
            item = api_pb2.TaskLogs(
                data=data.decode("utf-8", "replace"), file_descriptor=request.file_descriptor
            )
            yield api_pb2.TaskLogsBatch(items=[item], entry_id=str(offset))
        yield api_pb2.TaskLogsBatch(eof=True, entry_id=str(offset))

    async def SandboxStdinWrite(
        self, request: api_pb2.SandboxStdinWriteRequest, caller: Caller
    ) -> api_pb2.SandboxStdinWriteResponse:
        process = self._get(request.sandbox_id).main
        await process.write(process.written, request.input, request.eof)
        return api_pb2.SandboxStdinWriteResponse()

    async def SandboxGetCommandRouterAccess(
        self, request: api_pb2.SandboxGetCommandRouterAccessRequest, caller: Caller
    ) -> api_pb2.SandboxGetCommandRouterAccessResponse:
        return api_pb2.SandboxGetCommandRouterAccessResponse(jwt=unsigned_token(), url=self.url)

    async def TaskGetCommandRouterAccess(
        self, request: api_pb2.TaskGetCommandRouterAccessRequest, caller: Caller
    ) -> api_pb2.TaskGetCommandRouterAccessResponse:
        return api_pb2.TaskGetCommandRouterAccessResponse(jwt=unsigned_token(), url=self.url)

    SandboxGetTaskIdV2 = SandboxGetTaskId
    SandboxWaitV2 = SandboxWait
    SandboxTerminateV2 = SandboxTerminate
    SandboxTagsSetV2 = SandboxTagsSet
    SandboxTagsGetV2 = SandboxTagsGet
    SandboxListV2 = SandboxList


def _tags(messages: object) -> dict[str, str]:
    return {tag.tag_name: tag.tag_value for tag in messages}  # type: ignore[attr-defined]


def _tag_messages(sandbox: Sandbox) -> list[api_pb2.SandboxTag]:
    return [api_pb2.SandboxTag(tag_name=name, tag_value=value) for name, value in sandbox.tags.items()]


def _metadata(sandbox: Sandbox) -> api_pb2.SandboxHandleMetadata:
    return api_pb2.SandboxHandleMetadata(app_id=sandbox.app_id, result=sandbox.result)
