"""Apps: create, publish, keep alive by heartbeats, stop; and data about the workspace."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .functions import Functions
from .ids import new_id
from .rpc import ENVIRONMENT, Caller
from .settings import Settings
from .store import Shelf

STOPPED = (api_pb2.APP_STATE_STOPPING, api_pb2.APP_STATE_STOPPED)


@dataclass
class App:
    """An app. `heard` is the monotonic time of its client's last heartbeat; None after it left."""

    id: str
    description: str
    name: str
    state: int
    created_at: float
    tags: dict[str, str] = field(default_factory=dict)
    function_ids: dict[str, str] = field(default_factory=dict)
    stopped_at: float = 0.0
    heard: float | None = None


class Apps:
    """All apps. Calls `on_leave` when a client left, and `on_stop` to end an app with its calls."""

    def __init__(
        self,
        settings: Settings,
        functions: Functions,
        on_leave: Callable[[App], None],
        on_stop: Callable[[App], None],
    ) -> None:
        self._settings = settings
        self._functions = functions
        self._on_leave = on_leave
        self._on_stop = on_stop
        self._shelf: Shelf[api_pb2.AppListResponse.AppListItem] = Shelf(
            settings.state / "apps.json", api_pb2.AppListResponse.AppListItem
        )
        self.apps: dict[str, App] = {}
        for app_id, item in self._shelf.items():  # its containers ended with the last server
            self.apps[app_id] = App(
                app_id, item.description, item.name, api_pb2.APP_STATE_STOPPED, item.created_at
            )

    def get(self, app_id: str) -> App:
        app = self.apps.get(app_id)
        if app is None:
            raise GRPCError(Status.NOT_FOUND, f"App with ID '{app_id}' not found")
        return app

    def is_done(self, app_id: str) -> bool:
        app = self.apps.get(app_id)
        return app is None or app.state == api_pb2.APP_STATE_STOPPED

    def expire(self) -> None:
        """Treat a client that was silent for too long as gone."""
        limit = time.monotonic() - self._settings.heartbeat_timeout
        for app in list(self.apps.values()):
            if app.heard is not None and app.heard < limit and app.state not in STOPPED:
                self._leave(app)

    def stop(self, app: App) -> None:
        if app.state in STOPPED:
            return
        app.state = api_pb2.APP_STATE_STOPPING
        self._on_stop(app)

    def stopped(self, app: App) -> None:
        """Mark the app as stopped."""
        app.state = api_pb2.APP_STATE_STOPPED
        app.stopped_at = time.time()
        self._keep(app)

    def _leave(self, app: App) -> None:
        app.heard = None
        if app.state == api_pb2.APP_STATE_DETACHED:
            app.state = api_pb2.APP_STATE_DETACHED_DISCONNECTED
            self._on_leave(app)
        elif app.state in (api_pb2.APP_STATE_EPHEMERAL, api_pb2.APP_STATE_INITIALIZING):
            self.stop(app)

    def _keep(self, app: App) -> None:
        self._shelf.put(app.id, _list_item(app))

    # --- life cycle of an app

    async def AppCreate(
        self, request: api_pb2.AppCreateRequest, caller: Caller
    ) -> api_pb2.AppCreateResponse:
        app = App(
            id=new_id("ap"),
            description=request.description,
            name="",
            state=request.app_state or api_pb2.APP_STATE_EPHEMERAL,
            created_at=time.time(),
            tags=dict(request.tags),
            heard=time.monotonic(),
        )
        self.apps[app.id] = app
        self._keep(app)
        page = f"https://modal.invalid/apps/{app.id}"
        return api_pb2.AppCreateResponse(
            app_id=app.id, app_page_url=page, app_logs_url=page + "/logs"
        )

    async def AppGetOrCreate(
        self, request: api_pb2.AppGetOrCreateRequest, caller: Caller
    ) -> api_pb2.AppGetOrCreateResponse:
        # An id also finds stopped apps.
        app = self.apps.get(request.app_name) or self._named(request.app_name)
        if app is None:
            if request.object_creation_type != api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                raise GRPCError(Status.NOT_FOUND, f"App '{request.app_name}' not found")
            app = App(
                new_id("ap"),
                request.app_name,
                request.app_name,
                api_pb2.APP_STATE_DEPLOYED,
                time.time(),
            )
            self.apps[app.id] = app
            self._keep(app)
        return api_pb2.AppGetOrCreateResponse(app_id=app.id, handle_metadata=_handle(app))

    async def AppPublish(
        self, request: api_pb2.AppPublishRequest, caller: Caller
    ) -> api_pb2.AppPublishResponse:
        app = self.get(request.app_id)
        app.function_ids = dict(request.function_ids)
        if request.app_state == api_pb2.APP_STATE_DEPLOYED:
            app.state, app.name, app.heard = api_pb2.APP_STATE_DEPLOYED, request.name, None
        app.tags.update(request.tags)
        self._keep(app)
        return api_pb2.AppPublishResponse(
            url=f"https://modal.invalid/apps/{app.id}", deployed_at=time.time()
        )

    async def AppHeartbeat(self, request: api_pb2.AppHeartbeatRequest, caller: Caller) -> Empty:
        app = self.get(request.app_id)
        if app.state not in STOPPED:
            app.heard = time.monotonic()
        return Empty()

    async def AppClientDisconnect(
        self, request: api_pb2.AppClientDisconnectRequest, caller: Caller
    ) -> Empty:
        app = self.get(request.app_id)
        if app.state not in STOPPED:
            self._leave(app)
        return Empty()

    async def AppStop(self, request: api_pb2.AppStopRequest, caller: Caller) -> Empty:
        self.stop(self.get(request.app_id))
        return Empty()

    # --- app queries

    async def AppGetLayout(
        self, request: api_pb2.AppGetLayoutRequest, caller: Caller
    ) -> api_pb2.AppGetLayoutResponse:
        return api_pb2.AppGetLayoutResponse(app_layout=self.layout(request.app_id))

    def layout(self, app_id: str) -> api_pb2.AppLayout:
        layout = api_pb2.AppLayout(function_ids=self.get(app_id).function_ids)
        for function in self._functions.of_app(app_id):
            layout.objects.add(object_id=function.id, function_handle_metadata=function.handle)
            layout.function_ids[function.name] = function.id
        return layout

    async def AppGetByDeploymentName(
        self, request: api_pb2.AppGetByDeploymentNameRequest, caller: Caller
    ) -> api_pb2.AppGetByDeploymentNameResponse:
        app = self._named(request.name)
        return api_pb2.AppGetByDeploymentNameResponse(
            app_id=app.id if app else "", environment_name=ENVIRONMENT
        )

    async def AppList(
        self, request: api_pb2.AppListRequest, caller: Caller
    ) -> api_pb2.AppListResponse:
        return api_pb2.AppListResponse(apps=[_list_item(app) for app in self.apps.values()])

    async def AppGetInfo(
        self, request: api_pb2.AppGetInfoRequest, caller: Caller
    ) -> api_pb2.AppGetInfoResponse:
        return api_pb2.AppGetInfoResponse(info=_handle(self.get(request.app_id)))

    async def AppGetLifecycle(
        self, request: api_pb2.AppGetLifecycleRequest, caller: Caller
    ) -> api_pb2.AppGetLifecycleResponse:
        return api_pb2.AppGetLifecycleResponse(
            lifecycle=_handle(self.get(request.app_id)).lifecycle
        )

    async def AppSetTags(self, request: api_pb2.AppSetTagsRequest, caller: Caller) -> Empty:
        self.get(request.app_id).tags = dict(request.tags)
        return Empty()

    async def AppGetTags(
        self, request: api_pb2.AppGetTagsRequest, caller: Caller
    ) -> api_pb2.AppGetTagsResponse:
        return api_pb2.AppGetTagsResponse(tags=self.get(request.app_id).tags)

    async def FunctionGet(
        self, request: api_pb2.FunctionGetRequest, caller: Caller
    ) -> api_pb2.FunctionGetResponse:
        app = self._named(request.app_name)
        function_id = app.function_ids.get(request.object_tag, "") if app else ""
        if not function_id:
            raise GRPCError(
                Status.NOT_FOUND, f"No function '{request.object_tag}' in '{request.app_name}'"
            )
        function = self._functions.get(function_id)
        return api_pb2.FunctionGetResponse(
            function_id=function.id, handle_metadata=function.handle, function=function.data
        )

    def _named(self, name: str) -> App | None:
        alive = (app for app in self.apps.values() if app.state not in STOPPED)
        return next((app for app in alive if name and app.name == name), None)

    # --- the workspace

    async def ClientHello(self, request: Empty, caller: Caller) -> api_pb2.ClientHelloResponse:
        return api_pb2.ClientHelloResponse(image_builder_version=self._settings.builder_version)

    async def EnvironmentGetOrCreate(
        self, request: api_pb2.EnvironmentGetOrCreateRequest, caller: Caller
    ) -> api_pb2.EnvironmentGetOrCreateResponse:
        settings = api_pb2.EnvironmentSettings(image_builder_version=self._settings.builder_version)
        name = request.deployment_name or ENVIRONMENT
        creates = request.object_creation_type != api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED
        if name != ENVIRONMENT and not creates:
            raise GRPCError(Status.NOT_FOUND, f"Environment '{name}' not found")
        return api_pb2.EnvironmentGetOrCreateResponse(
            environment_id="en-" + "0" * 22,
            metadata=api_pb2.EnvironmentMetadata(name=name, settings=settings),
        )

    async def EnvironmentList(
        self, request: Empty, caller: Caller
    ) -> api_pb2.EnvironmentListResponse:
        return api_pb2.EnvironmentListResponse(
            items=[api_pb2.EnvironmentListItem(name=ENVIRONMENT, default=True, created_at=1.0)]
        )

    async def AuthTokenGet(
        self, request: api_pb2.AuthTokenGetRequest, caller: Caller
    ) -> api_pb2.AuthTokenGetResponse:
        return api_pb2.AuthTokenGetResponse(token=unsigned_token())

    async def WorkspaceNameLookup(
        self, request: Empty, caller: Caller
    ) -> api_pb2.WorkspaceNameLookupResponse:
        return api_pb2.WorkspaceNameLookupResponse(workspace_name="stand-in", username="test")

    async def WorkspaceBillingRates(
        self, request: api_pb2.WorkspaceBillingRatesRequest, caller: Caller
    ) -> api_pb2.WorkspaceBillingRatesResponse:
        return api_pb2.WorkspaceBillingRatesResponse(rates=dict(self._settings.rates))


def unsigned_token() -> str:
    """Return a JWT that is valid for a day; the client reads only its expiry."""

    def part(content: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none'})}.{part({'exp': int(time.time()) + 86400})}.none"


def _handle(app: App) -> api_pb2.AppHandleMetadata:
    lifecycle = api_pb2.AppLifecycle(created_at=app.created_at, stopped_at=app.stopped_at)
    lifecycle.app_state = app.state  # type: ignore[assignment]
    return api_pb2.AppHandleMetadata(
        description=app.description,
        app_id=app.id,
        environment_name=ENVIRONMENT,
        lifecycle=lifecycle,
        functions=app.function_ids,
    )


def _list_item(app: App) -> api_pb2.AppListResponse.AppListItem:
    return api_pb2.AppListResponse.AppListItem(
        app_id=app.id,
        description=app.description,
        name=app.name,
        state=app.state,  # type: ignore[arg-type]
        created_at=app.created_at,
        stopped_at=app.stopped_at,
        metadata=_handle(app),
    )
