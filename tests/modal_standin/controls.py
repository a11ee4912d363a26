"""Actions and queries of tests on a running server. Arguments and answers are JSON."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from pathlib import Path
from typing import Any

from .record import redacted
from .server import Server
from .tasks import Task
from .volume_blocks import Rules

POLL_INTERVAL_S = 0.02  # seconds between two checks of a condition


class Controls:
    """Controls on the server's event loop; tests call them through `api.py`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._watches: set[asyncio.Task[None]] = set()

    async def handle(self, method: str, arguments: dict[str, Any]) -> Any:
        """Call a method of this class by name. Raises LookupError for an unknown name."""
        if method.startswith("_") or method == "handle" or not hasattr(self, method):
            raise LookupError(f"no such control: {method}")
        return await getattr(self, method)(**arguments)

    # --- queries

    async def recorded(self, rpc: str | None = None, after: int = -1) -> list[dict[str, Any]]:
        return [
            {
                "number": request.number,
                "at": request.at,
                "rpc": request.rpc,
                "task": request.task,
                "kind": request.message.DESCRIPTOR.full_name,
                "data": base64.b64encode(request.message.SerializeToString()).decode(),
            }
            for request in self._server.recorder.requests(rpc, after)
        ]

    async def builds(self) -> list[dict[str, Any]]:
        return [
            {"image_id": b.image_id, "commands": list(b.commands), "failure": b.failure}
            for b in self._server.images.builds
        ]

    async def tasks(self) -> list[dict[str, Any]]:
        return [_facts(task) for task in self._server.containers.tasks.values()]

    async def calls(self) -> list[dict[str, Any]]:
        return [
            {
                "id": call.id,
                "app": call.app_id,
                "function": call.function_id,
                "unfinished": call.unfinished,
                "attempts": [list(item.tasks) for item in call.inputs.values()],
                "retries": [item.retries for item in call.inputs.values()],
                "statuses": [output.result.status for output in call.outputs],
            }
            for call in self._server.calls.calls.values()
        ]

    async def apps(self) -> list[dict[str, Any]]:
        return [
            {
                "id": a.id,
                "description": a.description,
                "name": a.name,
                "state": a.state,
                "tags": a.tags,
            }
            for a in self._server.apps.apps.values()
        ]

    async def log(self, of: str = "") -> str:
        entries = self._server.logs.entries
        return "".join(e.text for e in entries if of in ("", e.app, e.call, e.task, e.function))

    async def problems(self) -> dict[str, list[str]]:
        return {
            "unimplemented": self._server.problems.unimplemented,
            "errors": self._server.problems.errors,
        }

    async def http_requests(self) -> list[list[str]]:
        return [list(request) for request in self._server.web.requests]

    async def volume_path(self, name: str) -> str:
        volume_id = self._server.volumes.id_of(name)
        if not volume_id:
            raise LookupError(f"no volume {name!r}")
        return str(self._server.volumes.folder(volume_id))

    async def appeared(self, value: str) -> list[str]:
        """Return where a value appears: requests (except secret fields), uploads, logs, volumes."""
        needle = value.encode()
        places = [
            f"request {r.number} {r.rpc}"
            for r in self._server.recorder.requests()
            if needle in redacted(r.message).SerializeToString()
        ]
        places += [
            f"mounted file {n}"
            for n, p in self._server.mounts.uploaded().items()
            if _holds(p, needle)
        ]
        places += [
            f"log of {e.task}: {e.text.strip()}"
            for e in self._server.logs.entries
            if value in e.text
        ]
        folders = (self._server.settings.blobs, self._server.settings.volumes)
        files = [p for folder in folders for p in folder.rglob("*") if p.is_file()]
        places += [
            f"file {p.relative_to(self._server.settings.state)}" for p in files if _holds(p, needle)
        ]
        return places

    async def write_dockerfile(self, image_id: str, folder: str) -> str:
        return str(self._server.images.write_dockerfile(image_id, Path(folder)))

    # --- actions

    async def add_secret(self, name: str, values: dict[str, str]) -> None:
        self._server.secrets.add(name, values)

    async def inject(self, on: str, fault: str, **options: Any) -> None:
        self._server.faults.add(on, fault, **options)

    async def faults_fired(self) -> int:
        return self._server.faults.fired()

    async def clear_faults(self) -> None:
        self._server.faults.clear()

    async def volume_rules(self, **rules: Any) -> None:
        self._server.volumes.blocks.rules = Rules(**rules)

    async def disconnect(self) -> int:
        return self._server.disconnect()

    async def preempt(self, task: str = "", grace: float | None = None, wait: bool = True) -> str:
        """Send SIGINT, wait `grace` seconds, send SIGKILL; run the input in a new container."""
        return await self._end(task, "preempted", grace, wait)

    async def crash(self, task: str = "", wait: bool = True) -> str:
        """Kill the container without a warning, and run its input again."""
        return await self._end(task, "crashed", 0.0, wait)

    async def preempt_when(
        self,
        file: str = "",
        log: str = "",
        after: float = 0.0,
        times: int = 1,
        grace: float | None = None,
        crash: bool = False,
    ) -> None:
        """Preempt a busy container as soon as the condition holds; each container at most once.

        file: "VOLUME/PATTERN", a path in a volume, wildcards allowed. log: a regular expression
        that the container's own log must match. after: seconds since the container got its input.
        """
        watch = asyncio.ensure_future(self._watch(file, log, after, times, grace, crash))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    async def _watch(
        self, file: str, log: str, after: float, times: int, grace: float | None, crash: bool
    ) -> None:
        fired = 0
        while fired < times:
            await asyncio.sleep(POLL_INTERVAL_S)
            for task in self._working():
                if task.latest is None or time.time() - task.latest.started_at < after:
                    continue
                if log and not re.search(log, await self.log(task.id)):
                    continue
                if file and not any(self._server.settings.volumes.glob(file)):
                    continue
                self._server.containers.end(task, "crashed" if crash else "preempted", grace)
                fired += 1
                break

    async def _end(self, task_id: str, fate: str, grace: float | None, wait: bool) -> str:
        working = self._working()
        if task_id:
            working = [task for task in working if task.id == task_id]
        if not working:
            raise LookupError(
                f"no container works on an input{' with id ' + task_id if task_id else ''}"
            )
        self._server.containers.end(working[0], fate, grace)
        if wait:
            await working[0].ended.wait()
        return working[0].id

    def _working(self) -> list[Task]:
        return [
            t for t in self._server.containers.tasks.values() if t.alive and t.inputs and not t.fate
        ]


def _facts(task: Task) -> dict[str, Any]:
    return {
        "id": task.id,
        "function": task.function.name,
        "app": task.function.app_id,
        "alive": task.alive,
        "inputs": list(task.inputs),
        "fate": task.fate,
        "exit_code": task.exit_code,
        "rank": task.rank,
        "started_at": task.started_at,
        "ended_at": task.ended_at,
        "gpu": task.function.definition.resources.gpu_config.gpu_type,
        "gpu_count": task.function.definition.resources.gpu_config.count,
    }


def _holds(file: Path, needle: bytes) -> bool:
    try:
        return needle in file.read_bytes()
    except OSError:
        return False
