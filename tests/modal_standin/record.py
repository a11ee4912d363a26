"""Record every request in order, in memory and as JSON lines without secret values."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

REDACTED = "[redacted]"
MAX_DATA_BYTES = 4096  # bytes of a file's content that one line of the journal may hold

# The protocol's fields for secret values. They must not appear in any other field.
_SECRET_MAPS = {
    "SecretGetOrCreateRequest": ("env_dict",),
    "SandboxCreateV2Request": ("ephemeral_secrets.contents",),
    "TaskExecStartRequest": (),
}


@dataclass(frozen=True)
class Request:
    """One RPC as it arrived. `at` is a Unix time; `task` is empty unless a container asked."""

    number: int
    at: float
    rpc: str
    message: Message
    task: str = ""


class Recorder:
    """Thread-safe: the server writes from its own thread, tests read from theirs."""

    def __init__(self, journal: Path) -> None:
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._journal = journal.open("a", encoding="utf-8")

    def add(self, rpc: str, message: Message, task: str) -> None:
        kept = _without_content(message)
        with self._lock:
            request = Request(len(self._requests), time.time(), rpc, kept, task)
            self._requests.append(request)
            line = {
                "number": request.number,
                "at": round(request.at, 3),
                "rpc": rpc,
                "task": task,
                "message": MessageToDict(
                    _shortened(redacted(kept)), preserving_proto_field_name=True
                ),
            }
            self._journal.write(json.dumps(line) + "\n")
            self._journal.flush()

    def requests(self, rpc: str | None = None, after: int = -1) -> list[Request]:
        with self._lock:
            return [r for r in self._requests if r.number > after and rpc in (None, r.rpc)]

    def close(self) -> None:
        self._journal.close()


def redacted(message: Message) -> Message:
    """Return the message with secret values replaced; the same object if it has none."""
    name = message.DESCRIPTOR.name
    if name == "SecretUpdateRequest":
        copy = _copy(message)
        for update in copy.updates:
            update.value = REDACTED
        return copy
    if name not in _SECRET_MAPS:
        return message
    copy = _copy(message)
    for path in _SECRET_MAPS[name]:
        target = copy
        *parents, last = path.split(".")
        for part in parents:
            target = getattr(target, part)
        values = getattr(target, last, None)
        for key in list(values or ()):
            values[key] = REDACTED  # type: ignore[index]
    if hasattr(copy, "secret_sources"):
        for source in copy.secret_sources:
            for key in list(source.env.contents):
                source.env.contents[key] = REDACTED
    return copy


def _without_content(message: Message) -> Message:
    """Remove file content, which is on disk by its hash: a push may have a gigabyte."""
    if message.DESCRIPTOR.name == "MountPutFileRequest" and message.data:
        copy = _copy(message)
        copy.data = b""
        return copy
    return message


def _shortened(message: Message) -> Message:
    if message.ByteSize() <= MAX_DATA_BYTES:
        return message
    copy = _copy(message)
    _shorten(copy)
    return copy


def _shorten(message: Message) -> None:
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                _shorten(part)
        elif isinstance(value, bytes) and len(value) > MAX_DATA_BYTES:
            setattr(message, field.name, value[:64])


def _copy(message: Message) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
