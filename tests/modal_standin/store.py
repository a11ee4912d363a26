"""Messages that outlive the server: one file per kind, rewritten atomically."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Generic, TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


class Shelf(Generic[M]):
    """A dictionary of messages by id, kept as JSON in a file."""

    def __init__(self, file: Path, kind: type[M]) -> None:
        self._file = file
        self._items: dict[str, M] = {}
        if file.exists():
            for key, data in json.loads(file.read_text()).items():
                self._items[key] = kind.FromString(base64.b64decode(data))

    def __contains__(self, key: str) -> bool:
        return key in self._items

    def __getitem__(self, key: str) -> M:
        return self._items[key]

    def get(self, key: str) -> M | None:
        return self._items.get(key)

    def items(self) -> list[tuple[str, M]]:
        return list(self._items.items())

    def put(self, key: str, message: M) -> None:
        copy = type(message)()
        copy.CopyFrom(message)
        self._items[key] = copy
        self._write()

    def drop(self, key: str) -> None:
        self._items.pop(key, None)
        self._write()

    def _write(self) -> None:
        data = {
            key: base64.b64encode(m.SerializeToString()).decode() for key, m in self._items.items()
        }
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps(data))
        os.replace(temporary, self._file)
