"""The HTTP server: blocks of volumes, blobs, and controls from other processes."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from .content import Blobs, Content
from .faults import Faults
from .ids import new_id
from .settings import Settings
from .volumes import Volumes

CHUNK_BYTES = 256 * 1024  # bytes
# Seconds that an upload may pause. After a cut connection, aiohttp repeats a PUT with a payload
# that it already read to its end, and waits forever for an answer to a body that never arrives.
MAX_UPLOAD_PAUSE_S = 1.0
Control = Callable[[str, dict[str, Any]], Awaitable[Any]]


class Web:
    """Serve on 127.0.0.1. `url` is set by `start`."""

    def __init__(
        self,
        settings: Settings,
        content: Content,
        blobs: Blobs,
        volumes: Volumes,
        faults: Faults,
        control: Control,
    ) -> None:
        self._scratch = settings.scratch
        self._delay = settings.delay
        self._content = content
        self._blobs = blobs
        self._volumes = volumes
        self._faults = faults
        self._control = control
        self._runner: web.AppRunner | None = None
        self.requests: list[tuple[str, str]] = []  # (BlockGet | BlockPut | BlobGet | BlobPut, path)
        self.bytes_sent = 0
        self.url = ""

    async def start(self) -> str:
        app = web.Application(client_max_size=1 << 40)
        app.router.add_get("/block/{token}/{index}", self._get_block)
        app.router.add_put("/block/{sha256}", self._put_block)
        app.router.add_get("/blob/{blob}", self._get_blob)
        app.router.add_put("/blob/{blob}", self._put_blob)
        app.router.add_put("/blob/{blob}/{part}", self._put_blob)
        app.router.add_post("/blob/{blob}/complete", self._complete_blob)
        app.router.add_post("/control/{method}", self._answer_control)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self.url

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _get_block(self, request: web.Request) -> web.StreamResponse:
        block = self._volumes.blocks.read(
            request.match_info["token"], int(request.match_info["index"])
        )
        if block is None:
            return web.Response(status=403, text="this URL has expired")
        return await self._send(
            "BlockGet", request, block.file, block.begin, block.length, block.headers
        )

    async def _get_blob(self, request: web.Request) -> web.StreamResponse:
        path = self._blobs.path(request.match_info["blob"])
        if not path.exists():
            return web.Response(status=404)
        return await self._send("BlobGet", request, path, 0, path.stat().st_size)

    async def _send(
        self,
        name: str,
        request: web.Request,
        file: Path,
        offset: int,
        length: int,
        headers: dict[str, str] | None = None,
    ) -> web.StreamResponse:
        self.requests.append((name, request.path))
        if self._delay:
            await asyncio.sleep(self._delay)
        fault = self._faults.draw(name, request.path)
        if fault is not None and fault.isdigit():
            return web.Response(status=int(fault), text="injected")
        response = web.StreamResponse(headers=headers)
        response.content_length = length // 2 if fault == "truncate" else length
        await response.prepare(request)
        wanted = length // 2 if fault in ("truncate", "cut") else length
        with file.open("rb") as stream:
            stream.seek(offset)
            first = True
            while wanted and (chunk := stream.read(min(CHUNK_BYTES, wanted))):
                wanted -= len(chunk)
                self.bytes_sent += len(chunk)
                if first and fault == "corrupt":
                    chunk = bytes([chunk[0] ^ 0xFF]) + chunk[1:]
                first = False
                await response.write(chunk)
        if fault == "cut":
            _abort(request)
            return response
        await response.write_eof()
        return response

    async def _put_block(self, request: web.Request) -> web.StreamResponse:
        sha256_hex = request.match_info["sha256"]
        received = await self._receive("BlockPut", request)
        if isinstance(received, web.Response):
            return received
        if not self._volumes.blocks.takes(request.query.get("answer", "")):
            received.unlink()
            return web.Response(status=403, text="this URL has expired")
        stored = await asyncio.to_thread(self._content.adopt, received)
        received.unlink()
        if stored != sha256_hex:
            return web.Response(
                status=400, text=f"the block's SHA-256 is {stored}, not {sha256_hex}"
            )
        return web.Response(body=bytes.fromhex(stored))

    async def _put_blob(self, request: web.Request) -> web.StreamResponse:
        received = await self._receive("BlobPut", request)
        if isinstance(received, web.Response):
            return received
        md5 = hashlib.md5(received.read_bytes()).hexdigest()
        blob, part = request.match_info["blob"], request.match_info.get("part")
        received.rename(self._blobs.part(blob, int(part)) if part else self._blobs.path(blob))
        return web.Response(headers={"ETag": f'"{md5}"'})

    async def _complete_blob(self, request: web.Request) -> web.StreamResponse:
        blob = request.match_info["blob"]
        digests = b""
        number = 1
        with self._blobs.path(blob).open("wb") as whole:
            while (part := self._blobs.part(blob, number)).exists():
                data = part.read_bytes()
                digests += hashlib.md5(data).digest()
                whole.write(data)
                part.unlink()
                number += 1
        return web.Response(text=f"<ETag>{hashlib.md5(digests).hexdigest()}-{number - 1}</ETag>")

    async def _receive(self, name: str, request: web.Request) -> Path | web.Response:
        self.requests.append((name, request.path))
        if self._delay:
            await asyncio.sleep(self._delay)
        fault = self._faults.draw(name, request.path)
        if fault is not None and fault.isdigit():
            await request.read()
            return web.Response(status=int(fault), text="injected")
        file = self._scratch / new_id("upload")
        with file.open("wb") as stream:
            while True:
                try:
                    chunk = await asyncio.wait_for(
                        request.content.read(CHUNK_BYTES), MAX_UPLOAD_PAUSE_S
                    )
                except TimeoutError:
                    return web.Response(status=400, text="RequestTimeout: the body did not come")
                except ConnectionError:
                    return web.Response(status=499)
                if fault == "cut":
                    _abort(request)
                    return web.Response(status=499)
                if not chunk:
                    return file
                stream.write(chunk)

    async def _answer_control(self, request: web.Request) -> web.StreamResponse:
        arguments = await request.json()
        try:
            value = await self._control(request.match_info["method"], arguments)
        except Exception as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"value": value}, dumps=json.dumps)


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
