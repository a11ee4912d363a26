"""Functions: check and store their definitions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from . import limits
from .ids import new_id
from .rpc import Caller

DEFAULT_TIMEOUT_S = 300  # seconds


@dataclass
class Function:
    """A function. With several GPUs to choose from, `definition` is the first alternative."""

    id: str
    app_id: str
    name: str
    definition: api_pb2.Function = field(default_factory=api_pb2.Function)
    data: api_pb2.FunctionData = field(default_factory=api_pb2.FunctionData)
    handle: api_pb2.FunctionHandleMetadata = field(default_factory=api_pb2.FunctionHandleMetadata)

    @property
    def timeout(self) -> int:
        """Return the maximum seconds of one attempt."""
        return self.definition.timeout_secs or DEFAULT_TIMEOUT_S

    @property
    def startup_timeout(self) -> int:
        return self.definition.startup_timeout_secs or self.timeout

    @property
    def max_containers(self) -> int:
        limit = (
            self.definition.autoscaler_settings.max_containers or self.definition.concurrency_limit
        )
        return int(limit) or 100

    @property
    def cluster_size(self) -> int:
        return int(self.definition._experimental_group_size) or 1

    @property
    def idle_window(self) -> int:
        """Return the seconds that an idle container waits for inputs."""
        settings = self.definition.autoscaler_settings
        return int(settings.scaledown_window or self.definition.task_idle_timeout_secs) or 60


class Functions:
    """The functions of all apps, by id."""

    def __init__(self) -> None:
        self._functions: dict[str, Function] = {}
        self.on_server: Callable[[Function], Awaitable[str]]  # returns the address of a server

    def get(self, function_id: str) -> Function:
        function = self._functions.get(function_id)
        if function is None:
            raise GRPCError(Status.NOT_FOUND, f"Function with ID '{function_id}' not found")
        return function

    def of_app(self, app_id: str) -> list[Function]:
        return [f for f in self._functions.values() if f.app_id == app_id]

    async def FunctionPrecreate(
        self, request: api_pb2.FunctionPrecreateRequest, caller: Caller
    ) -> api_pb2.FunctionPrecreateResponse:
        function = self._functions.get(request.existing_function_id)
        if function is None:
            function = Function(new_id("fu"), request.app_id, request.function_name)
            self._functions[function.id] = function
        function.handle = api_pb2.FunctionHandleMetadata(
            app_id=request.app_id,
            function_name=request.function_name,
            function_type=request.function_type,
            function_schema=request.function_schema,
            supported_input_formats=request.supported_input_formats,
            supported_output_formats=request.supported_output_formats,
        )
        return api_pb2.FunctionPrecreateResponse(
            function_id=function.id, handle_metadata=function.handle
        )

    async def FunctionCreate(
        self, request: api_pb2.FunctionCreateRequest, caller: Caller
    ) -> api_pb2.FunctionCreateResponse:
        alternatives = [ranked.function for ranked in request.function_data.ranked_functions]
        definitions = alternatives or [request.function]
        for definition in definitions:
            limits.check_function(definition)
        definition = definitions[0]
        function = self._functions.get(request.existing_function_id)
        if function is None:
            function = Function(new_id("fu"), request.app_id, definition.function_name)
            self._functions[function.id] = function
        function.definition.CopyFrom(definition)
        function.data.CopyFrom(request.function_data)
        if not alternatives:
            function.data.ranked_functions.add(rank=0, function=definition)
        function.data.function_name = definition.function_name
        function.data.timeout_secs = definition.timeout_secs
        function.data.startup_timeout_secs = definition.startup_timeout_secs
        function.handle = api_pb2.FunctionHandleMetadata(
            app_id=request.app_id,
            function_name=definition.function_name,
            function_type=definition.function_type,
            definition_id=new_id("de"),
            function_schema=definition.function_schema,
            supported_input_formats=definition.supported_input_formats,
            supported_output_formats=definition.supported_output_formats,
        )
        if definition.is_server:
            function.handle._experimental_flash_urls.append(await self.on_server(function))
        return api_pb2.FunctionCreateResponse(
            function_id=function.id,
            function=definition,
            function_data=function.data,
            handle_metadata=function.handle,
        )

    async def FunctionGetById(
        self, request: api_pb2.FunctionGetByIdRequest, caller: Caller
    ) -> api_pb2.FunctionGetByIdResponse:
        function = self.get(request.function_id)
        return api_pb2.FunctionGetByIdResponse(
            function=function.data, handle_metadata=function.handle
        )
