"""Secrets: from a table given to the stand-in, or created by a client for one app."""

from __future__ import annotations

from collections.abc import Mapping

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .ids import new_id
from .rpc import Caller


class Secrets:
    """All secrets, in memory only: no file of the state directory has a value."""

    def __init__(self, table: Mapping[str, Mapping[str, str]]) -> None:
        self._values: dict[str, dict[str, str]] = {}
        self._names: dict[str, str] = {}
        for name, values in table.items():
            self.add(name, values)

    def add(self, name: str, values: Mapping[str, str]) -> str:
        secret_id = self._names.setdefault(name, new_id("st"))
        self._values[secret_id] = dict(values)
        return secret_id

    async def SecretGetOrCreate(
        self, request: api_pb2.SecretGetOrCreateRequest, caller: Caller
    ) -> api_pb2.SecretGetOrCreateResponse:
        creation = request.object_creation_type
        if creation in (
            api_pb2.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP,
            api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL,
        ):
            secret_id = new_id("st")
            self._values[secret_id] = dict(request.env_dict)
        elif creation == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
            secret_id = self._names.get(request.deployment_name, "")
            if not secret_id:
                raise GRPCError(Status.NOT_FOUND, f"Secret '{request.deployment_name}' not found")
        else:
            exists = request.deployment_name in self._names
            if exists and creation == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
                raise GRPCError(
                    Status.ALREADY_EXISTS, f"Secret '{request.deployment_name}' already exists"
                )
            if exists and creation == api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                secret_id = self._names[request.deployment_name]
            else:
                secret_id = self.add(request.deployment_name, request.env_dict)
        lacking = [key for key in request.required_keys if key not in self._values[secret_id]]
        if lacking:
            raise GRPCError(
                Status.FAILED_PRECONDITION, f"Secret is missing key(s): {', '.join(lacking)}"
            )
        return api_pb2.SecretGetOrCreateResponse(
            secret_id=secret_id, metadata=self._metadata(secret_id, request.deployment_name)
        )

    async def SecretGetInfo(
        self, request: api_pb2.SecretGetInfoRequest, caller: Caller
    ) -> api_pb2.SecretGetInfoResponse:
        self.values([request.secret_id])
        names = {secret_id: name for name, secret_id in self._names.items()}
        name = names.get(request.secret_id, "")
        return api_pb2.SecretGetInfoResponse(metadata=self._metadata(request.secret_id, name))

    async def SecretList(
        self, request: api_pb2.SecretListRequest, caller: Caller
    ) -> api_pb2.SecretListResponse:
        if request.pagination.created_before and request.pagination.created_before < 2:
            return api_pb2.SecretListResponse(environment_name="main")
        items = [
            api_pb2.SecretListItem(
                label=name,
                secret_id=secret_id,
                created_at=1.0,
                metadata=self._metadata(secret_id, name),
            )
            for name, secret_id in self._names.items()
        ]
        return api_pb2.SecretListResponse(items=items, environment_name="main")

    def values(self, secret_ids: list[str]) -> dict[str, str]:
        """Return the variables that the secrets set in a container; later ones win."""
        merged: dict[str, str] = {}
        for secret_id in secret_ids:
            if secret_id not in self._values:
                raise GRPCError(Status.NOT_FOUND, f"no secret {secret_id}")
            merged.update(self._values[secret_id])
        return merged

    def _metadata(self, secret_id: str, name: str) -> api_pb2.SecretMetadata:
        return api_pb2.SecretMetadata(
            name=name,
            keys=sorted(self._values[secret_id]),
            environment_name="main",
            creation_info=api_pb2.CreationInfo(created_at=1.0, created_by="test"),
        )
