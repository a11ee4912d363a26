"""Function calls: inputs, attempts, outputs, retries and cancellation."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .functions import Functions
from .ids import new_id
from .pulse import Pulse
from .rpc import Caller
from .settings import Settings
from .store import Shelf

Result = api_pb2.GenericResult
PENDING, RUNNING, DONE = "pending", "running", "done"
SYNC = (
    api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC,
    api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC_LEGACY,
)


@dataclass
class Input:
    """An input. `tasks` are its containers: more than one after a preemption or retry.
    `on_queued` is called with a function's id when an input waits for a container, `on_finished`
    with a"""

    id: str
    index: int
    call_id: str
    function_id: str
    message: api_pb2.FunctionInput
    state: str = PENDING
    retries: int = 0
    tasks: list[str] = field(default_factory=list)
    output: api_pb2.FunctionGetOutputsItem | None = None
    started_at: float = 0.0


@dataclass
class Call:
    id: str
    app_id: str
    function_id: str
    invocation: int
    created_at: float
    inputs: dict[str, Input] = field(default_factory=dict)
    outputs: list[api_pb2.FunctionGetOutputsItem] = field(
        default_factory=list
    )  # in the order of arrival
    chunks: list[api_pb2.DataChunk] = field(default_factory=list)  # of a generator

    @property
    def unfinished(self) -> int:
        return sum(1 for i in self.inputs.values() if i.state != DONE)


class Calls:
    """All calls, with callbacks.

    `on_queued` gets an input that waits for a container, `on_finished` a call whose last input is
    done, and `on_cancel` an input that a container works on.
    """

    def __init__(self, settings: Settings, functions: Functions) -> None:
        self._functions = functions
        self._shelf: Shelf[api_pb2.FunctionGetOutputsResponse] = Shelf(
            settings.state / "calls.json", api_pb2.FunctionGetOutputsResponse
        )
        self.calls: dict[str, Call] = {}
        self.pulse = Pulse()
        self.on_queued: Callable[[Input, float], None] = lambda waiting, delay: None
        self.on_finished: Callable[[Call], None] = lambda call: None
        self.on_cancel: Callable[[Input, bool], None] = lambda running, terminate: None
        for key, response in self._shelf.items():
            call_id, app_id, function_id = key.split(":")
            self.calls[call_id] = Call(
                call_id, app_id, function_id, 0, 0.0, outputs=list(response.outputs)
            )

    def get(self, call_id: str) -> Call:
        call = self.calls.get(call_id)
        if call is None:
            raise GRPCError(Status.NOT_FOUND, f"Function call '{call_id}' not found")
        return call

    def of_app(self, app_id: str) -> list[Call]:
        return [call for call in self.calls.values() if call.app_id == app_id]

    # --- from the client

    async def FunctionMap(
        self, request: api_pb2.FunctionMapRequest, caller: Caller
    ) -> api_pb2.FunctionMapResponse:
        function = self._functions.get(request.function_id)
        invocation = request.function_call_invocation_type
        call = Call(new_id("fc"), function.app_id, function.id, invocation, time.time())
        self.calls[call.id] = call
        return api_pb2.FunctionMapResponse(
            function_call_id=call.id,
            function_call_jwt=call.id,
            pipelined_inputs=[self._put(call, item) for item in request.pipelined_inputs],
            retry_policy=function.definition.retry_policy,
            sync_client_retries_enabled=False,  # the server retries calls and spawns
            max_inputs_outstanding=1000,
        )

    async def FunctionPutInputs(
        self, request: api_pb2.FunctionPutInputsRequest, caller: Caller
    ) -> api_pb2.FunctionPutInputsResponse:
        call = self.get(request.function_call_id)
        return api_pb2.FunctionPutInputsResponse(
            inputs=[self._put(call, item) for item in request.inputs]
        )

    async def FunctionFinishInputs(
        self, request: api_pb2.FunctionFinishInputsRequest, caller: Caller
    ) -> Empty:
        self.get(request.function_call_id)
        return Empty()

    def _put(
        self, call: Call, item: api_pb2.FunctionPutInputsItem
    ) -> api_pb2.FunctionPutInputsResponseItem:
        waiting = Input(new_id("in"), item.idx, call.id, call.function_id, item.input)
        call.inputs[waiting.id] = waiting
        self.on_queued(waiting, 0.0)
        return api_pb2.FunctionPutInputsResponseItem(
            idx=item.idx, input_id=waiting.id, input_jwt=waiting.id
        )

    async def FunctionGetOutputs(
        self, request: api_pb2.FunctionGetOutputsRequest, caller: Caller
    ) -> api_pb2.FunctionGetOutputsResponse:
        call = self.get(request.function_call_id)
        deadline = time.monotonic() + request.timeout
        by_index = request.HasField("start_idx") or request.HasField("end_idx")
        seen = 0 if by_index else int(request.last_entry_id.split("-")[0] or 0)
        while True:
            found = call.outputs[seen:]
            if by_index:
                found = [o for o in found if request.start_idx <= o.idx <= request.end_idx]
            elif request.max_values:
                found = found[: request.max_values]
            if found or time.monotonic() >= deadline:
                return api_pb2.FunctionGetOutputsResponse(
                    idxs=[o.idx for o in found],
                    outputs=found,
                    last_entry_id=f"{seen + len(found)}-0",
                    num_unfinished_inputs=call.unfinished,
                )
            await self.pulse.wait(deadline - time.monotonic())

    async def FunctionCallCancel(
        self, request: api_pb2.FunctionCallCancelRequest, caller: Caller
    ) -> Empty:
        self.cancel(self.get(request.function_call_id), request.terminate_containers)
        return Empty()

    def cancel(self, call: Call, terminate: bool) -> None:
        """End the call's inputs without a retry; `terminate` also ends their containers."""
        for item in list(call.inputs.values()):
            if item.state == DONE:
                continue
            running = item.state == RUNNING
            result = Result(
                status=Result.GENERIC_STATUS_TERMINATED, exception="Input was cancelled by user"
            )
            self.finish(item, result)
            if running:
                self.on_cancel(item, terminate)

    async def FunctionCallFromId(
        self, request: api_pb2.FunctionCallFromIdRequest, caller: Caller
    ) -> api_pb2.FunctionCallFromIdResponse:
        call = self.get(request.function_call_id)
        return api_pb2.FunctionCallFromIdResponse(
            function_call_id=call.id,
            num_inputs=len(call.inputs) or len(call.outputs),
            metadata=api_pb2.FunctionCallHandleMetadata(
                app_id=call.app_id, function_id=call.function_id
            ),
        )

    async def FunctionCallGetInfo(
        self, request: api_pb2.FunctionCallGetInfoRequest, caller: Caller
    ) -> api_pb2.FunctionCallGetInfoResponse:
        return api_pb2.FunctionCallGetInfoResponse(info=_info(self.get(request.function_call_id)))

    async def FunctionCallList(
        self, request: api_pb2.FunctionCallListRequest, caller: Caller
    ) -> api_pb2.FunctionCallListResponse:
        calls = [c for c in self.calls.values() if c.function_id == request.function_id]
        return api_pb2.FunctionCallListResponse(function_calls=[_info(call) for call in calls])

    async def FunctionCallGetDataOut(
        self, request: api_pb2.FunctionCallGetDataRequest, caller: Caller
    ) -> AsyncIterator[api_pb2.DataChunk]:
        call = self.get(request.function_call_id)
        seen = request.last_index
        while True:
            for chunk in [c for c in call.chunks if c.index > seen]:
                seen = chunk.index
                yield chunk
            if not call.unfinished:
                return
            await self.pulse.wait(10.0)

    # --- from the containers

    def take(self, item: Input, task: str) -> None:
        """Record that a container works on the input."""
        item.state, item.started_at = RUNNING, time.time()
        item.tasks.append(task)

    def describe(self, item: Input) -> api_pb2.FunctionGetInputsItem:
        """Return the input in the form that a container receives."""
        return api_pb2.FunctionGetInputsItem(
            input_id=item.id,
            input=item.message,
            function_call_id=item.call_id,
            function_call_invocation_type=self.get(item.call_id).invocation,  # type: ignore[arg-type]
            retry_count=item.retries,
            function_map_idx=item.index,
        )

    def put_back(self, item: Input) -> None:
        """Queue the input again after its container was lost, without counting a retry."""
        if item.state == RUNNING:
            item.state = PENDING
            self.on_queued(item, 0.0)

    def fail(
        self, item: Input, result: Result, data_format: int = api_pb2.DATA_FORMAT_PICKLE
    ) -> None:
        """Retry if the function's policy allows it, else end with this result."""
        if item.state == DONE:
            return
        policy = self._functions.get(item.function_id).definition.retry_policy
        if item.retries >= policy.retries:
            self.finish(item, result, data_format)
            return
        delay = policy.initial_delay_ms * (policy.backoff_coefficient or 1.0) ** item.retries / 1000
        item.retries += 1
        item.state = PENDING
        self.on_queued(item, min(delay, (policy.max_delay_ms or 60_000) / 1000))

    def finish(
        self, item: Input, result: Result, data_format: int = api_pb2.DATA_FORMAT_PICKLE
    ) -> None:
        if item.state == DONE:
            return
        item.state = DONE
        item.output = api_pb2.FunctionGetOutputsItem(
            result=result,
            idx=item.index,
            input_id=item.id,
            data_format=data_format,  # type: ignore[arg-type]
            task_id=item.tasks[-1] if item.tasks else "",
            input_started_at=item.started_at,
            output_created_at=time.time(),
            retry_count=item.retries,
        )
        call = self.get(item.call_id)
        call.outputs.append(item.output)
        self.pulse.beat()
        if not call.unfinished:
            kept = api_pb2.FunctionGetOutputsResponse(outputs=call.outputs)
            self._shelf.put(f"{call.id}:{call.app_id}:{call.function_id}", kept)
            self.on_finished(call)


def _info(call: Call) -> api_pb2.FunctionCallInfo:
    outputs = call.outputs
    statuses = [output.result.status for output in outputs]
    named = {
        Result.GENERIC_STATUS_SUCCESS: "succeeded_inputs",
        Result.GENERIC_STATUS_TIMEOUT: "timeout_inputs",
        Result.GENERIC_STATUS_TERMINATED: "cancelled_inputs",
    }
    info = api_pb2.FunctionCallInfo(
        function_call_id=call.id,
        created_at=call.created_at,
        total_inputs=len(call.inputs) or len(outputs),
        pending_inputs=api_pb2.InputCategoryInfo(total=call.unfinished),
    )
    for status in statuses:
        getattr(info, named.get(status, "failed_inputs")).total += 1
    return info
