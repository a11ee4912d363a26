"""The service that runs a client's commands in a sandbox; on Modal, a worker offers it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpclib import GRPCError, Status
from modal_proto import task_command_router_pb2 as router_pb2

from .exec_process import ExecProcess
from .rpc import Caller
from .sandboxes import Sandboxes

LONG_POLL_S = 50.0  # seconds; the client gives up and asks again after 60


class CommandRouter:
    """Run commands with or without a terminal: start, stdin, stdout, stderr, poll, wait."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    def _exec(self, task_id: str, exec_id: str) -> ExecProcess:
        process = self._sandboxes.of_task(task_id).execs.get(exec_id)
        if process is None:
            raise GRPCError(Status.NOT_FOUND, f"no command {exec_id} in {task_id}")
        return process

    async def TaskExecStart(
        self, request: router_pb2.TaskExecStartRequest, caller: Caller
    ) -> router_pb2.TaskExecStartResponse:
        sandbox = self._sandboxes.of_task(request.task_id)
        if sandbox.result is not None:
            raise GRPCError(Status.NOT_FOUND, f"sandbox {sandbox.id} has ended")
        if request.exec_id in sandbox.execs:  # a repeated request
            return router_pb2.TaskExecStartResponse()
        pty = (
            request.pty_info if request.HasField("pty_info") and request.pty_info.pty_type else None
        )
        env = self._sandboxes.environment(sandbox, list(request.secret_sources), pty)
        env.update(request.env)
        process = sandbox.execs[request.exec_id] = ExecProcess()
        size = (pty.winsz_rows or 24, pty.winsz_cols or 80) if pty is not None else None
        await self._sandboxes.run(
            sandbox, process, list(request.command_args), env, request.workdir, size
        )
        return router_pb2.TaskExecStartResponse()

    async def TaskExecStdioRead(
        self, request: router_pb2.TaskExecStdioReadRequest, caller: Caller
    ) -> AsyncIterator[router_pb2.TaskExecStdioReadResponse]:
        is_stderr = request.file_descriptor == router_pb2.TASK_EXEC_STDIO_FILE_DESCRIPTOR_STDERR
        process = self._exec(request.task_id, request.exec_id)
        async for data in process.read(2 if is_stderr else 1, request.offset):
            yield router_pb2.TaskExecStdioReadResponse(data=data)

    async def TaskExecStdinWrite(
        self, request: router_pb2.TaskExecStdinWriteRequest, caller: Caller
    ) -> router_pb2.TaskExecStdinWriteResponse:
        process = self._exec(request.task_id, request.exec_id)
        await process.write(request.offset, request.data, request.eof)
        return router_pb2.TaskExecStdinWriteResponse()

    async def TaskExecStdinWriteStream(
        self, stream: Any, caller: Caller
    ) -> router_pb2.TaskExecStdinWriteStreamResponse:
        process: ExecProcess | None = None
        offset = 0
        while (message := await stream.recv_message()) is not None:
            if message.HasField("start"):
                process = self._exec(message.start.task_id, message.start.exec_id)
                offset = message.start.offset
            elif process is not None:
                await process.write(offset, message.data, eof=message.HasField("end"))
                offset += len(message.data)
        return router_pb2.TaskExecStdinWriteStreamResponse()

    async def TaskExecStdinStatus(
        self, request: router_pb2.TaskExecStdinStatusRequest, caller: Caller
    ) -> router_pb2.TaskExecStdinStatusResponse:
        process = self._exec(request.task_id, request.exec_id)
        return router_pb2.TaskExecStdinStatusResponse(
            num_bytes_written=process.written, closed=process.closed
        )

    async def TaskExecPoll(
        self, request: router_pb2.TaskExecPollRequest, caller: Caller
    ) -> router_pb2.TaskExecPollResponse:
        code = self._exec(request.task_id, request.exec_id).code
        if code is None:
            return router_pb2.TaskExecPollResponse()
        return router_pb2.TaskExecPollResponse(code=code) if code >= 0 else _signalled_poll(code)

    async def TaskExecWait(
        self, request: router_pb2.TaskExecWaitRequest, caller: Caller
    ) -> router_pb2.TaskExecWaitResponse:
        code = await self._exec(request.task_id, request.exec_id).wait(LONG_POLL_S)
        if code is None:
            raise GRPCError(Status.DEADLINE_EXCEEDED, "the command still runs")
        if code < 0:
            return router_pb2.TaskExecWaitResponse(signal=-code)
        return router_pb2.TaskExecWaitResponse(code=code)

    async def SandboxStdioReadV2(
        self, request: router_pb2.SandboxStdioReadV2Request, caller: Caller
    ) -> AsyncIterator[router_pb2.SandboxStdioReadV2Response]:
        is_stderr = request.file_descriptor == router_pb2.SANDBOX_STDIO_FILE_DESCRIPTOR_STDERR
        process = self._sandboxes.of_task(request.task_id).main
        offset = request.offset
        async for data in process.read(2 if is_stderr else 1, offset):
            yield router_pb2.SandboxStdioReadV2Response(data=data, starting_offset=offset)
            offset += len(data)

    async def SandboxStdinWriteV2(
        self, request: router_pb2.SandboxStdinWriteV2Request, caller: Caller
    ) -> router_pb2.SandboxStdinWriteV2Response:
        await self._sandboxes.of_task(request.task_id).main.write(
            request.offset, request.data, request.eof
        )
        return router_pb2.SandboxStdinWriteV2Response()

    async def TaskReloadVolumes(
        self, request: router_pb2.TaskReloadVolumesRequest, caller: Caller
    ) -> router_pb2.TaskReloadVolumesResponse:
        sandbox = self._sandboxes.of_task(request.task_id)
        for view in sandbox.container.views:
            await asyncio.to_thread(view.reload, self._sandboxes.scratch)
        return router_pb2.TaskReloadVolumesResponse()


def _signalled_poll(code: int) -> router_pb2.TaskExecPollResponse:
    return router_pb2.TaskExecPollResponse(signal=-code)
