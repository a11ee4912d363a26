"""Volumes of version 1 and 2: folders of real files below the state directory."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from . import volume_files
from .content import Content
from .ids import new_id
from .rpc import Caller
from .settings import Settings
from .store import Shelf
from .volume_blocks import BLOCK_SIZE, Blocks

LIST_BATCH = 500  # entries in one message of a listing


class Volumes:
    """All volumes. The folder of a volume has its name, so that tests can read it."""

    def __init__(self, settings: Settings, content: Content) -> None:
        self._root = settings.volumes
        self._scratch = settings.scratch
        self._content = content
        self._volumes: Shelf[api_pb2.VolumeMetadata] = Shelf(
            settings.state / "volumes.json", api_pb2.VolumeMetadata
        )
        self.blocks = Blocks(content, settings.scratch)

    def folder(self, volume_id: str) -> Path:
        return self._root / (self._get(volume_id).name or volume_id)

    def metadata(self, volume_id: str) -> api_pb2.VolumeMetadata:
        return self._get(volume_id)

    # --- volumes

    async def VolumeGetOrCreate(
        self, request: api_pb2.VolumeGetOrCreateRequest, caller: Caller
    ) -> api_pb2.VolumeGetOrCreateResponse:
        creation = request.object_creation_type
        ephemeral = creation == api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL
        volume_id = "" if ephemeral else self.id_of(request.deployment_name)
        if volume_id and creation == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise GRPCError(
                Status.ALREADY_EXISTS, f"Volume '{request.deployment_name}' already exists"
            )
        if not volume_id and creation == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
            raise GRPCError(Status.NOT_FOUND, f"Volume '{request.deployment_name}' not found")
        if not volume_id:
            volume_id = new_id("vo")
            metadata = api_pb2.VolumeMetadata(
                name="" if ephemeral else request.deployment_name,
                version=request.version or api_pb2.VOLUME_FS_VERSION_V1,
                creation_info=api_pb2.CreationInfo(created_at=time.time(), created_by="test"),
            )
            self._volumes.put(volume_id, metadata)
            self.folder(volume_id).mkdir(exist_ok=True)
        metadata = self._get(volume_id)
        return api_pb2.VolumeGetOrCreateResponse(
            volume_id=volume_id, version=metadata.version, metadata=metadata
        )

    async def VolumeGetById(
        self, request: api_pb2.VolumeGetByIdRequest, caller: Caller
    ) -> api_pb2.VolumeGetByIdResponse:
        return api_pb2.VolumeGetByIdResponse(
            volume_id=request.volume_id, metadata=self._get(request.volume_id)
        )

    async def VolumeList(
        self, request: api_pb2.VolumeListRequest, caller: Caller
    ) -> api_pb2.VolumeListResponse:
        before = request.pagination.created_before or float("inf")
        items = [
            api_pb2.VolumeListItem(
                label=m.name, volume_id=volume_id, created_at=m.creation_info.created_at, metadata=m
            )
            for volume_id, m in self._volumes.items()
            if m.name and m.creation_info.created_at < before
        ]
        items.sort(key=lambda item: -item.created_at)
        limit = request.pagination.max_objects or len(items)
        return api_pb2.VolumeListResponse(items=items[:limit], environment_name="main")

    async def VolumeRename(self, request: api_pb2.VolumeRenameRequest, caller: Caller) -> Empty:
        if self.id_of(request.name):
            raise GRPCError(Status.ALREADY_EXISTS, f"Volume '{request.name}' already exists")
        metadata = self._get(request.volume_id)
        old = self.folder(request.volume_id)
        metadata.name = request.name
        self._volumes.put(request.volume_id, metadata)
        old.rename(self.folder(request.volume_id))
        return Empty()

    async def VolumeDelete(self, request: api_pb2.VolumeDeleteRequest, caller: Caller) -> Empty:
        folder = self.folder(request.volume_id)
        self._volumes.drop(request.volume_id)
        shutil.rmtree(folder)
        return Empty()

    async def VolumeHeartbeat(
        self, request: api_pb2.VolumeHeartbeatRequest, caller: Caller
    ) -> Empty:
        return Empty()

    # --- listing and reading

    async def VolumeListFiles(
        self, request: api_pb2.VolumeListFilesRequest, caller: Caller
    ) -> AsyncIterator[api_pb2.VolumeListFilesResponse]:
        for batch in self._listing(request):
            yield api_pb2.VolumeListFilesResponse(entries=batch)

    async def VolumeListFiles2(
        self, request: api_pb2.VolumeListFiles2Request, caller: Caller
    ) -> AsyncIterator[api_pb2.VolumeListFiles2Response]:
        for batch in self._listing(request):
            yield api_pb2.VolumeListFiles2Response(entries=batch)

    def _listing(
        self, request: api_pb2.VolumeListFilesRequest | api_pb2.VolumeListFiles2Request
    ) -> list[list[api_pb2.FileEntry]]:
        root = self.folder(request.volume_id)
        found = list(volume_files.entries(root, request.path, request.recursive))
        if request.max_entries:
            found = found[: request.max_entries]
        return [found[n : n + LIST_BATCH] for n in range(0, len(found), LIST_BATCH)]

    async def VolumeGetFile2(
        self, request: api_pb2.VolumeGetFile2Request, caller: Caller
    ) -> api_pb2.VolumeGetFile2Response:
        file = volume_files.existing(self.folder(request.volume_id), request.path)
        if file.is_dir():
            raise GRPCError(Status.INVALID_ARGUMENT, f"{request.path} is a directory")
        size = file.stat().st_size
        rest = max(0, size - request.start)
        # The answer's length is the requested one, even past the end of the file, as in Modal's
        # own test server.
        length = request.len or rest
        urls = self.blocks.to_read(
            file, request.start, min(length, rest), request.client_pads_blocks
        )
        return api_pb2.VolumeGetFile2Response(
            get_urls=urls, size=size, start=request.start, len=length
        )

    # --- writing

    async def VolumePutFiles(self, request: api_pb2.VolumePutFilesRequest, caller: Caller) -> Empty:
        root = self.folder(request.volume_id)
        volume_files.check_writable(
            root, [f.filename for f in request.files], request.disallow_overwrite_existing_files
        )
        for file in request.files:
            if not self._content.has(file.sha256_hex):
                raise GRPCError(Status.FAILED_PRECONDITION, f"{file.filename} was never uploaded")
            written = self._scratch / new_id("file")
            shutil.copyfile(self._content.path(file.sha256_hex), written)
            volume_files.place(root, file.filename, written, file.mode)
        return Empty()

    async def VolumePutFiles2(
        self, request: api_pb2.VolumePutFiles2Request, caller: Caller
    ) -> api_pb2.VolumePutFiles2Response:
        root = self.folder(request.volume_id)
        volume_files.check_writable(
            root, [f.path for f in request.files], request.disallow_overwrite_existing_files
        )
        response = api_pb2.VolumePutFiles2Response()
        asked: set[bytes] = set()
        answer = new_id("answer")
        for file_index, file in enumerate(request.files):
            placed = volume_files.inside(root, file.path)
            for block_index, block in enumerate(file.blocks):
                sha256 = block.contents_sha256
                if sha256 in asked or self.blocks.has(sha256, block.put_response, placed):
                    continue
                asked.add(sha256)
                url = self.blocks.to_put(sha256, answer)
                response.missing_blocks.add(
                    file_index=file_index, block_index=block_index, put_url=url
                )
        if not response.missing_blocks:
            for file in request.files:
                volume_files.place(root, file.path, self._assembled(file), file.mode)
        return response

    def _assembled(self, file: api_pb2.VolumePutFiles2Request.File) -> Path:
        """Join blocks, and restore their trailing zeros from the file's size."""
        written = self._scratch / new_id("file")
        with written.open("wb") as stream:
            for index, block in enumerate(file.blocks):
                stream.seek(index * BLOCK_SIZE)
                stream.write(self._content.path(block.contents_sha256.hex()).read_bytes())
            stream.truncate(file.size)
        return written

    async def VolumeRemoveFile(
        self, request: api_pb2.VolumeRemoveFileRequest, caller: Caller
    ) -> Empty:
        volume_files.remove(self.folder(request.volume_id), request.path, request.recursive)
        return Empty()

    async def VolumeRemoveFile2(
        self, request: api_pb2.VolumeRemoveFile2Request, caller: Caller
    ) -> Empty:
        volume_files.remove(self.folder(request.volume_id), request.path, request.recursive)
        return Empty()

    async def VolumeCopyFiles(
        self, request: api_pb2.VolumeCopyFilesRequest, caller: Caller
    ) -> Empty:
        root = self.folder(request.volume_id)
        volume_files.copy(root, list(request.src_paths), request.dst_path, request.recursive)
        return Empty()

    async def VolumeCopyFiles2(
        self, request: api_pb2.VolumeCopyFiles2Request, caller: Caller
    ) -> Empty:
        root = self.folder(request.volume_id)
        volume_files.copy(root, list(request.src_paths), request.dst_path, request.recursive)
        return Empty()

    # --- lookup

    def id_of(self, name: str) -> str:
        """Return the id of the volume with this name, or ''."""
        return next((volume_id for volume_id, m in self._volumes.items() if m.name == name), "")

    def _get(self, volume_id: str) -> api_pb2.VolumeMetadata:
        metadata = self._volumes.get(volume_id)
        if metadata is None:
            raise GRPCError(Status.NOT_FOUND, f"Volume {volume_id} not found")
        return metadata
