"""Requests of clients about sandboxes: create, wait, end, list, tag."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from .apps import unsigned_token
from .rpc import Caller
from .sandboxes import Sandbox, Sandboxes

Result = api_pb2.GenericResult


class SandboxRequests:
    """The RPCs. The client uses version 2 of each, but version 1 for a sandbox with a GPU."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    async def SandboxCreateV2(
        self, request: api_pb2.SandboxCreateV2Request, caller: Caller
    ) -> api_pb2.SandboxCreateV2Response:
        sandbox = await self._sandboxes.start(
            request.app_id,
            request.definition,
            _tags(request.tags),
            list(request.secret_sources),
            old=False,
        )
        return api_pb2.SandboxCreateV2Response(
            sandbox_id=sandbox.id,
            task_id=sandbox.task_id,
            metadata=_metadata(sandbox),
            command_router_access=api_pb2.CommandRouterAccess(
                jwt=unsigned_token(), url=self._sandboxes.url
            ),
        )

    async def SandboxCreate(
        self, request: api_pb2.SandboxCreateRequest, caller: Caller
    ) -> api_pb2.SandboxCreateResponse:
        sandbox = await self._sandboxes.start(
            request.app_id, request.definition, _tags(request.tags), [], old=True
        )
        return api_pb2.SandboxCreateResponse(sandbox_id=sandbox.id, metadata=_metadata(sandbox))

    async def SandboxGetTaskId(
        self, request: api_pb2.SandboxGetTaskIdRequest, caller: Caller
    ) -> api_pb2.SandboxGetTaskIdResponse:
        sandbox = self._sandboxes.get(request.sandbox_id)
        if sandbox.result is not None:
            return api_pb2.SandboxGetTaskIdResponse(task_result=sandbox.result)
        return api_pb2.SandboxGetTaskIdResponse(task_id=sandbox.task_id)

    async def SandboxWait(
        self, request: api_pb2.SandboxWaitRequest, caller: Caller
    ) -> api_pb2.SandboxWaitResponse:
        sandbox = self._sandboxes.get(request.sandbox_id)
        deadline = time.monotonic() + request.timeout
        while sandbox.result is None and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return api_pb2.SandboxWaitResponse(result=sandbox.result, metadata=_metadata(sandbox))

    async def SandboxTerminate(
        self, request: api_pb2.SandboxTerminateRequest, caller: Caller
    ) -> api_pb2.SandboxTerminateResponse:
        sandbox = self._sandboxes.get(request.sandbox_id)
        existing = sandbox.result
        await self._sandboxes.end(sandbox, Result.GENERIC_STATUS_TERMINATED)
        return api_pb2.SandboxTerminateResponse(existing_result=existing)

    async def SandboxTagsSet(self, request: api_pb2.SandboxTagsSetRequest, caller: Caller) -> Empty:
        self._sandboxes.get(request.sandbox_id).tags = _tags(request.tags)
        return Empty()

    async def SandboxTagsGet(
        self, request: api_pb2.SandboxTagsGetRequest, caller: Caller
    ) -> api_pb2.SandboxTagsGetResponse:
        return api_pb2.SandboxTagsGetResponse(
            tags=_tag_messages(self._sandboxes.get(request.sandbox_id))
        )

    async def SandboxList(
        self, request: api_pb2.SandboxListRequest, caller: Caller
    ) -> api_pb2.SandboxListResponse:
        wanted = _tags(request.tags)
        found = [
            sandbox
            for sandbox in self._sandboxes.sandboxes.values()
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
        sandbox = self._sandboxes.get(request.sandbox_id)
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
        process = self._sandboxes.get(request.sandbox_id).main
        await process.write(process.written, request.input, request.eof)
        return api_pb2.SandboxStdinWriteResponse()

    async def SandboxGetCommandRouterAccess(
        self, request: api_pb2.SandboxGetCommandRouterAccessRequest, caller: Caller
    ) -> api_pb2.SandboxGetCommandRouterAccessResponse:
        return api_pb2.SandboxGetCommandRouterAccessResponse(
            jwt=unsigned_token(), url=self._sandboxes.url
        )

    async def TaskGetCommandRouterAccess(
        self, request: api_pb2.TaskGetCommandRouterAccessRequest, caller: Caller
    ) -> api_pb2.TaskGetCommandRouterAccessResponse:
        return api_pb2.TaskGetCommandRouterAccessResponse(
            jwt=unsigned_token(), url=self._sandboxes.url
        )

    SandboxGetTaskIdV2 = SandboxGetTaskId
    SandboxWaitV2 = SandboxWait
    SandboxTerminateV2 = SandboxTerminate
    SandboxTagsSetV2 = SandboxTagsSet
    SandboxTagsGetV2 = SandboxTagsGet
    SandboxListV2 = SandboxList


def _tags(messages: object) -> dict[str, str]:
    return {tag.tag_name: tag.tag_value for tag in messages}  # type: ignore[attr-defined]


def _tag_messages(sandbox: Sandbox) -> list[api_pb2.SandboxTag]:
    return [
        api_pb2.SandboxTag(tag_name=name, tag_value=value) for name, value in sandbox.tags.items()
    ]


def _metadata(sandbox: Sandbox) -> api_pb2.SandboxHandleMetadata:
    return api_pb2.SandboxHandleMetadata(app_id=sandbox.app_id, result=sandbox.result)
