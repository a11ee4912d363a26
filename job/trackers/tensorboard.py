"""TensorBoard's event file, written synchronously, so that errors reach the caller."""

from __future__ import annotations

import itertools
import os
import socket
import time
from pathlib import Path
from typing import Any

from job.trackers import Numbers

_numbers = itertools.count()  # of this process's files


class TensorBoard:
    """Writes an event file; TensorBoard drops earlier values from ``first_step`` on."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.summary = event_pb2.Event, summary_pb2
        self.tensor, self.text_type = tensor_pb2.TensorProto, types_pb2.DT_STRING
        folder.mkdir(parents=True, exist_ok=True)
        host, number = socket.gethostname(), next(_numbers)
        name = f"events.out.tfevents.{int(time.time()):010d}.{host}.{os.getpid()}.{number}"
        self.records = RecordWriter((folder / name).open("wb"))
        self._write(file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=first_step, session_log=start)

    def log(self, numbers: Numbers, step: int) -> None:
        """Write the numbers of a step."""
        values = [self.summary.Summary.Value(tag=k, simple_value=v) for k, v in numbers.items()]
        self._write(step=step, summary=self.summary.Summary(value=values))

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text, which TensorBoard shows as Markdown: keep its lines and spaces."""
        indented = "".join(f"    {line}\n" for line in text.splitlines())
        plugin = self.summary.SummaryMetadata.PluginData(plugin_name="text")
        value = self.summary.Summary.Value(
            tag=tag,
            metadata=self.summary.SummaryMetadata(plugin_data=plugin),
            tensor=self.tensor(dtype=self.text_type, string_val=[indented.encode()]),
        )
        self._write(step=step, summary=self.summary.Summary(value=[value]))

    def flush(self) -> None:
        """Show everything written so far."""
        self.records.flush()

    def close(self) -> None:
        """Close the file."""
        self.records.close()

    def _write(self, **fields: Any) -> None:
        self.records.write(self.event(wall_time=time.time(), **fields).SerializeToString())
