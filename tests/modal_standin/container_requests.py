"""Requests of containers: inputs, outputs, volumes and clusters."""

from __future__ import annotations

import asyncio
import time

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from . import processes
from .calls import DONE, RUNNING, Calls
from .containers import Containers
from .rpc import Caller
from .settings import Settings
from .volume_views import View

Result = api_pb2.GenericResult
LONG_POLL_S = 10.0  # seconds; the client repeats the request


class ContainerRequests:
    """The RPCs of the entry point. A header of the request identifies the container."""

    def __init__(self, settings: Settings, containers: Containers, calls: Calls) -> None:
        self._scratch = settings.scratch
        self._containers = containers
        self._calls = calls

    async def ContainerHello(self, request: Empty, caller: Caller) -> Empty:
        self._containers.get(caller.task).ready = True
        return Empty()

    async def ContainerHeartbeat(
        self, request: api_pb2.ContainerHeartbeatRequest, caller: Caller
    ) -> api_pb2.ContainerHeartbeatResponse:
        task = self._containers.get(caller.task)
        deadline = time.monotonic() + LONG_POLL_S
        while not task.cancelled and time.monotonic() < deadline:
            await self._containers.pulse.wait(deadline - time.monotonic())
        response = api_pb2.ContainerHeartbeatResponse()
        if task.cancelled:
            response.cancel_input_event.input_ids.extend(task.cancelled)
            task.cancelled.clear()
        return response

    async def ContainerStop(self, request: api_pb2.ContainerStopRequest, caller: Caller) -> Empty:
        self._containers.end(self._containers.get(request.task_id), "stopped")
        return Empty()

    async def FunctionGetInputs(
        self, request: api_pb2.FunctionGetInputsRequest, caller: Caller
    ) -> api_pb2.FunctionGetInputsResponse:
        task = self._containers.get(caller.task)
        task.ready = True
        deadline = time.monotonic() + task.function.idle_window
        while True:
            if task.fate:
                return _no_more()
            item = self._containers.next_input(task)
            if item is not None:
                return api_pb2.FunctionGetInputsResponse(inputs=[self._containers.give(task, item)])
            if time.monotonic() >= deadline and not task.inputs:
                return _no_more()
            await self._containers.pulse.wait(
                min(LONG_POLL_S, max(deadline - time.monotonic(), 0.5))
            )

    async def FunctionPutOutputs(
        self, request: api_pb2.FunctionPutOutputsRequest, caller: Caller
    ) -> Empty:
        task = self._containers.get(caller.task)
        for output in request.outputs:
            item = task.inputs.pop(output.input_id, None)
            if item is None or task.rank > 0 or item.state == DONE or item.tasks[-1] != task.id:
                continue
            if item.retries != output.retry_count or item.state != RUNNING:
                continue  # of an earlier attempt
            if output.result.status == Result.GENERIC_STATUS_SUCCESS:
                self._calls.finish(item, output.result, output.data_format)
            else:
                self._calls.fail(item, output.result, output.data_format)
        self._containers.schedule(task.function)
        return Empty()

    async def TaskResult(self, request: api_pb2.TaskResultRequest, caller: Caller) -> Empty:
        self._containers.get(caller.task).result = request.result
        return Empty()

    async def FunctionCallPutDataOut(
        self, request: api_pb2.FunctionCallPutDataRequest, caller: Caller
    ) -> Empty:
        call = self._calls.get(request.function_call_id)
        call.chunks.extend(request.data_chunks)
        self._calls.pulse.beat()
        return Empty()

    async def TaskList(
        self, request: api_pb2.TaskListRequest, caller: Caller
    ) -> api_pb2.TaskListResponse:
        response = api_pb2.TaskListResponse()
        for task in self._containers.tasks.values():
            if task.alive and request.app_id in ("", task.function.app_id):
                response.tasks.add(
                    task_id=task.id,
                    app_id=task.function.app_id,
                    started_at=task.started_at,
                    enqueued_at=task.started_at,
                )
        return response

    # --- volumes

    async def VolumeCommit(
        self, request: api_pb2.VolumeCommitRequest, caller: Caller
    ) -> api_pb2.VolumeCommitResponse:
        for view in self._views(caller, request.volume_id):
            await asyncio.to_thread(view.commit, self._scratch)
        return api_pb2.VolumeCommitResponse(skip_reload=False)

    async def VolumeReload(self, request: api_pb2.VolumeReloadRequest, caller: Caller) -> Empty:
        for view in self._views(caller, request.volume_id):
            held = await asyncio.to_thread(_open_in, view, caller.task)
            if held:
                raise GRPCError(
                    Status.FAILED_PRECONDITION,
                    f"there are open files preventing the operation: {held}",
                )
            await asyncio.to_thread(view.reload, self._scratch)
        return Empty()

    def _views(self, caller: Caller, volume_id: str) -> list[View]:
        views = [
            view for view in self._containers.get(caller.task).views if view.volume_id == volume_id
        ]
        if not views:
            raise GRPCError(
                Status.NOT_FOUND, f"volume {volume_id} is not mounted in this container"
            )
        return views

    # --- clusters

    async def TaskClusterHello(
        self, request: api_pb2.TaskClusterHelloRequest, caller: Caller
    ) -> api_pb2.TaskClusterHelloResponse:
        task = self._containers.get(request.task_id)
        cluster = task.cluster
        if cluster is None:
            raise GRPCError(Status.FAILED_PRECONDITION, f"{task.id} is not one of a cluster")
        cluster.hello[task.id] = request.container_ip
        self._containers.pulse.beat()
        while len(cluster.hello) < len(cluster.tasks) and not task.fate:
            await self._containers.pulse.wait(LONG_POLL_S)
        return api_pb2.TaskClusterHelloResponse(
            cluster_id=cluster.id,
            cluster_rank=task.rank,
            container_ips=[cluster.hello.get(member.id, "") for member in cluster.tasks],
            container_ipv4_ips=["127.0.0.1" for _ in cluster.tasks],
        )

    async def ClusterGet(
        self, request: api_pb2.ClusterGetRequest, caller: Caller
    ) -> api_pb2.ClusterGetResponse:
        members = [
            task
            for task in self._containers.tasks.values()
            if task.cluster is not None and task.cluster.id == request.cluster_id
        ]
        if not members:
            raise GRPCError(Status.NOT_FOUND, f"no cluster {request.cluster_id}")
        stats = api_pb2.ClusterStats(
            app_id=members[0].function.app_id,
            task_ids=[task.id for task in members],
            cluster_id=request.cluster_id,
            started_at=members[0].started_at,
        )
        return api_pb2.ClusterGetResponse(cluster=stats)


def _no_more() -> api_pb2.FunctionGetInputsResponse:
    return api_pb2.FunctionGetInputsResponse(
        inputs=[api_pb2.FunctionGetInputsItem(kill_switch=True)]
    )


def _open_in(view: View, task_id: str) -> str:
    """Return a file of the volume that a process of the container has open, or ''."""
    held = processes.open_files(task_id)
    for path in view.folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if path.is_file() and (status.st_dev, status.st_ino) in held:
            return f"path {path.relative_to(view.folder)} is open"
    return ""
