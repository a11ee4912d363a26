"""Mounts: sets of files, by path and hash, in a container's file system."""

from __future__ import annotations

import shutil
from pathlib import Path

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .content import Content
from .ids import id_of
from .rpc import Caller
from .settings import Settings
from .store import Shelf


class Mounts:
    """All mounts. The id depends on the files: the same folder has the same mount."""

    def __init__(self, settings: Settings, content: Content) -> None:
        self._content = content
        self._mounts: Shelf[api_pb2.MountGetOrCreateRequest] = Shelf(
            settings.state / "mounts.json", api_pb2.MountGetOrCreateRequest
        )

    async def MountGetOrCreate(
        self, request: api_pb2.MountGetOrCreateRequest, caller: Caller
    ) -> api_pb2.MountGetOrCreateResponse:
        if request.deployment_name and not request.files:
            return self._global_mount(request)
        for file in request.files:
            if not self._content.has(file.sha256_hex):
                raise GRPCError(Status.FAILED_PRECONDITION, f"{file.filename} was never uploaded")
        parts = sorted(f"{f.filename}\0{f.sha256_hex}\0{f.mode}" for f in request.files)
        mount_id = id_of("mo", *parts)
        if mount_id not in self._mounts:
            self._mounts.put(mount_id, request)
        return _response(mount_id)

    def _global_mount(
        self, request: api_pb2.MountGetOrCreateRequest
    ) -> api_pb2.MountGetOrCreateResponse:
        """Return the mount of the client's package, which the interpreter has already."""
        if request.namespace != api_pb2.DEPLOYMENT_NAMESPACE_GLOBAL:
            raise GRPCError(Status.NOT_FOUND, f"Mount '{request.deployment_name}' not found")
        mount_id = id_of("mo", "global", request.deployment_name)
        if mount_id not in self._mounts:
            self._mounts.put(mount_id, request)
        return _response(mount_id)

    def files(self, mount_id: str) -> dict[str, api_pb2.MountFile]:
        """Return the mount's files by path. Paths start with a slash."""
        mount = self._mounts.get(mount_id)
        if mount is None:
            raise GRPCError(Status.NOT_FOUND, f"no mount {mount_id}")
        return {"/" + f.filename.lstrip("/"): f for f in mount.files}

    def lay_out(self, mount_id: str, root: Path) -> None:
        """Write the mount's files under `root`."""
        for name, file in self.files(mount_id).items():
            self.lay_out_file(file, root / name.lstrip("/"))

    def lay_out_file(self, file: api_pb2.MountFile, target: Path) -> None:
        """Write one file of a mount."""
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._content.path(file.sha256_hex), target)
        target.chmod(file.mode or 0o644)

    def uploaded(self) -> dict[str, Path]:
        """Return every path in every mount, with the path of its content."""
        return {
            f"{mount_id}:{name}": self._content.path(file.sha256_hex)
            for mount_id, _ in self._mounts.items()
            for name, file in self.files(mount_id).items()
        }


def _response(mount_id: str) -> api_pb2.MountGetOrCreateResponse:
    checksum = mount_id.removeprefix("mo-")
    return api_pb2.MountGetOrCreateResponse(
        mount_id=mount_id,
        handle_metadata=api_pb2.MountHandleMetadata(content_checksum_sha256_hex=checksum),
    )
