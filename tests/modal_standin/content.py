"""Content by its SHA-256, and blobs that a client uploads to a URL first."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .ids import new_id
from .rpc import Caller
from .settings import Settings

# Modal's threshold is a gigabyte. A lower one lets tests use the multipart protocol cheaply.
MULTIPART_THRESHOLD = 64 * 1024 * 1024
PART_LENGTH = 32 * 1024 * 1024


class Content:
    """A content-addressed store on disk. A file gets its name when it is complete."""

    def __init__(self, settings: Settings) -> None:
        self._root = settings.content
        self._scratch = settings.scratch

    def path(self, sha256_hex: str) -> Path:
        return self._root / sha256_hex[:2] / sha256_hex

    def has(self, sha256_hex: str) -> bool:
        return self.path(sha256_hex).exists()

    def put(self, data: bytes) -> str:
        """Store bytes and return their SHA-256 in hex."""
        sha256_hex = hashlib.sha256(data).hexdigest()
        if not self.has(sha256_hex):
            temporary = self._scratch / new_id("content")
            temporary.write_bytes(data)
            self._place(temporary, sha256_hex)
        return sha256_hex

    def adopt(self, file: Path) -> str:
        """Copy a file into the store and return its SHA-256 in hex."""
        with file.open("rb") as stream:
            sha256_hex = hashlib.file_digest(stream, "sha256").hexdigest()
        if not self.has(sha256_hex):
            temporary = self._scratch / new_id("content")
            shutil.copyfile(file, temporary)
            self._place(temporary, sha256_hex)
        return sha256_hex

    def _place(self, temporary: Path, sha256_hex: str) -> None:
        target = self.path(sha256_hex)
        target.parent.mkdir(exist_ok=True)
        os.replace(temporary, target)

    def files(self) -> list[Path]:
        return [p for p in self._root.glob("*/*") if p.is_file()]


class Blobs:
    """BlobCreate and BlobGet. The content is transferred over HTTP; see `web.py`."""

    def __init__(self, settings: Settings) -> None:
        self._root = settings.blobs
        self.url = ""

    def path(self, blob_id: str) -> Path:
        return self._root / blob_id

    def part(self, blob_id: str, number: int) -> Path:
        return self._root / f"{blob_id}.{number}"

    async def BlobCreate(
        self, request: api_pb2.BlobCreateRequest, caller: Caller
    ) -> api_pb2.BlobCreateResponse:
        blob_id = new_id("bl")
        response = api_pb2.BlobCreateResponse(blob_id=blob_id, blob_ids=[blob_id])
        if request.content_length > MULTIPART_THRESHOLD:
            parts = -(-request.content_length // PART_LENGTH)
            response.multiparts.items.add(
                part_length=PART_LENGTH,
                upload_urls=[f"{self.url}/blob/{blob_id}/{n}" for n in range(1, parts + 1)],
                completion_url=f"{self.url}/blob/{blob_id}/complete",
            )
        else:
            response.upload_urls.items.append(f"{self.url}/blob/{blob_id}")
        return response

    async def BlobGet(
        self, request: api_pb2.BlobGetRequest, caller: Caller
    ) -> api_pb2.BlobGetResponse:
        if not self.path(request.blob_id).exists():
            raise GRPCError(Status.NOT_FOUND, f"no blob {request.blob_id}")
        return api_pb2.BlobGetResponse(download_url=f"{self.url}/blob/{request.blob_id}")


class MountFiles:
    """Uploads of files for mounts and version 1 volumes."""

    def __init__(self, content: Content, blobs: Blobs) -> None:
        self._content = content
        self._blobs = blobs

    async def MountPutFile(
        self, request: api_pb2.MountPutFileRequest, caller: Caller
    ) -> api_pb2.MountPutFileResponse:
        kind = request.WhichOneof("data_oneof")
        if kind == "data_blob_id":
            stored = self._content.adopt(self._blobs.path(request.data_blob_id))
        elif kind == "data":
            stored = self._content.put(request.data)
        else:
            stored = request.sha256_hex
        if stored != request.sha256_hex:
            raise GRPCError(
                Status.INVALID_ARGUMENT, f"the file's SHA-256 is {stored}, not {request.sha256_hex}"
            )
        return api_pb2.MountPutFileResponse(exists=self._content.has(stored), checked_at=_now())

    async def MountBatchedCheckExistence(
        self, request: api_pb2.MountBatchedCheckExistenceRequest, caller: Caller
    ) -> api_pb2.MountBatchedCheckExistenceResponse:
        missing = [h for h in request.sha256_hex_hashes if not self._content.has(h)]
        return api_pb2.MountBatchedCheckExistenceResponse(
            missing_sha256_hex_hashes=missing, checked_at=_now()
        )


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now
