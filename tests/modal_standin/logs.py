"""Logs of containers, served as Modal does: as a stream, by time, and counted."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2

from .pulse import Pulse
from .rpc import Caller

STDOUT = api_pb2.FILE_DESCRIPTOR_STDOUT
STDERR = api_pb2.FILE_DESCRIPTOR_STDERR
SYSTEM = api_pb2.FILE_DESCRIPTOR_INFO

Filter = api_pb2.AppGetLogsRequest | api_pb2.AppFetchLogsRequest | api_pb2.AppCountLogsRequest


@dataclass(frozen=True)
class Entry:
    """One line. `at` is in nanoseconds since the epoch; `source` is a FileDescriptor."""

    number: int
    at: int
    app: str
    function: str
    call: str
    input: str
    task: str
    source: int
    text: str


class Logs:
    """The log of all apps, which `logs.jsonl` keeps across servers."""

    def __init__(self, file: Path, is_done: Callable[[str], bool]) -> None:
        self._is_done = is_done
        self.pulse = Pulse()
        self.entries: list[Entry] = []
        if file.exists():
            self.entries = [Entry(**json.loads(line)) for line in file.read_text().splitlines()]
        self._file = file.open("a", encoding="utf-8")

    def add(
        self, *, app: str, function: str, call: str, input: str, task: str, source: int, text: str
    ) -> None:
        entry = Entry(
            len(self.entries) + 1, time.time_ns(), app, function, call, input, task, source, text
        )
        self.entries.append(entry)
        self._file.write(json.dumps(asdict(entry)) + "\n")
        self._file.flush()
        self.pulse.beat()

    def close(self) -> None:
        self._file.close()

    async def AppGetLogs(
        self, request: api_pb2.AppGetLogsRequest, caller: Caller
    ) -> AsyncIterator[api_pb2.TaskLogsBatch]:
        seen = int(request.last_entry_id.split("-")[0] or 0) if request.last_entry_id else 0
        deadline = time.monotonic() + request.timeout
        while True:
            done = bool(request.app_id) and self._is_done(request.app_id)  # read before the check
            fresh = self.entries[seen:]
            seen += len(fresh)
            for batch in _batches([e for e in fresh if _matches(e, request)]):
                yield batch
            if done:
                yield api_pb2.TaskLogsBatch(app_done=True, entry_id=f"{seen}-0")
                return
            if time.monotonic() >= deadline:
                return
            await self.pulse.wait(deadline - time.monotonic())

    async def AppFetchLogs(
        self, request: api_pb2.AppFetchLogsRequest, caller: Caller
    ) -> api_pb2.AppFetchLogsResponse:
        found = self._between(request)
        return api_pb2.AppFetchLogsResponse(
            batches=_batches(found[-request.limit :] if request.limit else found)
        )

    async def AppCountLogs(
        self, request: api_pb2.AppCountLogsRequest, caller: Caller
    ) -> api_pb2.AppCountLogsResponse:
        width = max(request.bucket_secs, 1)
        response = api_pb2.AppCountLogsResponse(app_id=request.app_id)
        for start, group in groupby(
            self._between(request), key=lambda e: e.at // 10**9 // width * width
        ):
            sources = [e.source for e in group]
            response.buckets.add(
                bucket_start_at=Timestamp(seconds=start),
                stdout_logs=sources.count(STDOUT),
                stderr_logs=sources.count(STDERR),
                system_logs=sources.count(SYSTEM),
            )
        return response

    def _between(
        self, request: api_pb2.AppFetchLogsRequest | api_pb2.AppCountLogsRequest
    ) -> list[Entry]:
        since, until = request.since.ToNanoseconds(), request.until.ToNanoseconds()
        return [e for e in self.entries if since <= e.at < until and _matches(e, request)]


def _matches(entry: Entry, request: Filter) -> bool:
    source = (
        request.file_descriptor
        if isinstance(request, api_pb2.AppGetLogsRequest)
        else request.source
    )
    task = request.task_id or request.sandbox_id
    return (
        request.app_id in ("", entry.app)
        and request.function_id in ("", entry.function)
        and request.function_call_id in ("", entry.call)
        and task in ("", entry.task)
        and source in (api_pb2.FILE_DESCRIPTOR_UNSPECIFIED, entry.source)
        and request.search_text in entry.text
    )


def _batches(entries: list[Entry]) -> list[api_pb2.TaskLogsBatch]:
    batches = []
    for (task, function, input_id), group in groupby(
        entries, key=lambda e: (e.task, e.function, e.input)
    ):
        batch = api_pb2.TaskLogsBatch(task_id=task, function_id=function, input_id=input_id)
        for entry in group:
            batch.items.add(
                data=entry.text,
                file_descriptor=entry.source,
                function_call_id=entry.call,
                input_id=entry.input,
                container_id=entry.task,
                timestamp=entry.at / 1e9,
                timestamp_ns=entry.at,
            )
            batch.entry_id = f"{entry.number}-0"
        batches.append(batch)
    return batches
