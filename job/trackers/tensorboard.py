"""TensorBoard's event file, written synchronously, so that an error shows at once."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from job.trackers import Numbers

_numbers = itertools.count()  # of this process's files


class TensorBoard:
    """Writes an event file; TensorBoard drops earlier values from ``first_step`` on.

    An error, also of its import, turns it off with a warning; it never ends the training.
    """

    def __init__(self, folder: Path, first_step: int, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self.records: Any = None  # None after an error
        self._guard(self._open, folder)
        self._write(file_version="brain.Event:2")
        self._write(step=first_step, session_log={"status": "START"})

    def log(self, numbers: Numbers, step: int) -> None:
        """Write the numbers of a step."""
        values = [{"tag": key, "simple_value": value} for key, value in numbers.items()]
        self._write(step=step, summary={"value": values})

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text, which TensorBoard shows as Markdown: keep its lines and spaces."""
        indented = "".join(f"    {line}\n" for line in text.splitlines())
        value = {
            "tag": tag,
            "metadata": {"plugin_data": {"plugin_name": "text"}},
            "tensor": {"dtype": "DT_STRING", "string_val": [indented.encode()]},
        }
        self._write(step=step, summary={"value": [value]})

    def flush(self) -> None:
        """Show everything written so far."""
        if self.records is not None:
            self._guard(self.records.flush)

    def close(self) -> None:
        """Close the file."""
        if self.records is not None:
            self._guard(self.records.close)

    def _open(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event = Event
        folder.mkdir(parents=True, exist_ok=True)
        host, number = socket.gethostname(), next(_numbers)
        name = f"events.out.tfevents.{int(time.time()):010d}.{host}.{os.getpid()}.{number}"
        self.records = RecordWriter((folder / name).open("wb"))

    def _write(self, **fields: Any) -> None:
        def write() -> None:
            self.records.write(self.event(wall_time=time.time(), **fields).SerializeToString())

        if self.records is not None:
            self._guard(write)

    def _guard(self, action: Callable[..., object], *arguments: object) -> None:
        try:
            action(*arguments)
        except Exception as error:  # a full disk, or whatever the library raises
            self.records = None
            self.warn(
                f"warning: TensorBoard failed and is off for this attempt: {error}; the training "
                "continues, and metrics.jsonl has every value"
            )
