"""The metrics of a run: metrics.jsonl and TensorBoard always, Weights & Biases if it is set up.

A tracker never ends or delays a training: its first error turns it off, with a message.
"""

from __future__ import annotations

import json
import mmap
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from job.files import fsync_file, naming
from job.format import json_text

WANDB_CLOSE_TIMEOUT_S = 20.0  # for its last uploads

EVALUATION = b'"kind": "val"'

Line = dict[str, Any]
Say = Callable[[str], None]


def _parse(text: bytes) -> Line | None:
    """Return a line of metrics.jsonl; None if a kill or a power cut damaged it."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_valid = isinstance(line, dict) and "kind" in line and isinstance(line.get("step"), int)
    return line if is_valid else None


def read_metrics(path: Path) -> list[Line]:
    """Return the undamaged lines of a metrics.jsonl."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        return [line for text in file if (line := _parse(text)) is not None]


def sample_metrics(path: Path, points: int) -> list[Line]:
    """Return every evaluation of a metrics.jsonl, and about ``points`` evenly spaced other lines."""
    if not path.exists() or path.stat().st_size == 0:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        places = [len(content) * i // points for i in range(points)]
        at = content.find(EVALUATION)
        while at >= 0:
            places.append(at)
            at = content.find(EVALUATION, at + 1)
        starts = sorted({content.rfind(b"\n", 0, place) + 1 for place in places})
        lines = [_parse(content[start : content.find(b"\n", start)]) for start in starts]
    return [line for line in lines if line is not None]


def drop_lines_after(path: Path, step: int) -> None:
    """Cut a metrics.jsonl after its last undamaged line of at most ``step``.

    Steps never decrease within the file, so reading from its end is enough: 1,000,000 lines would
    take 16 s.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = content.rfind(b"\n") + 1 if step >= 0 else 0
            while end > 0:
                start = content.rfind(b"\n", 0, end - 1) + 1
                line = _parse(content[start:end])
                if line is not None and line["step"] <= step:
                    break
                end = start
        file.truncate(end)


class Metrics:
    """Writes one line for each logged step and evaluation of a run; nothing without a folder.

    A run that resumes at ``resume_step`` drops lines that an earlier attempt logged after it, so
    the file holds each step once.
    """

    def __init__(
        self, folder: Path | None, resume_step: int, wandb_project: str | None, say: Say
    ) -> None:
        self.folder, self.say = folder, say
        self.trackers: list[_TensorBoard | _Wandb] = []
        if folder is None:
            return
        self.path = folder / "metrics.jsonl"
        with naming(self.path):
            drop_lines_after(self.path, resume_step)
            self.file = self.path.open("a", encoding="utf-8", buffering=1)
        self._add_tracker(lambda: _TensorBoard(folder / "tensorboard", resume_step + 1))
        if wandb_project is not None and (why := _wandb_is_missing()):
            say(f"train.wandb_project is set but {why}: logging to TensorBoard only")
        elif wandb_project is not None:
            self._add_tracker(lambda: _Wandb(wandb_project, folder, say))

    def log(self, kind: str, step: int, **values: Any) -> None:
        """Write one line; ``kind`` is train, val or checkpoint."""
        if self.folder is None:
            return
        with naming(self.path):
            self.file.write(json_text({"kind": kind, "step": step, **values}) + "\n")
        numbers = {f"{kind}/{key}": v for key, v in values.items() if isinstance(v, int | float)}
        self._each(lambda tracker: tracker.log(numbers, step))

    def flush(self, durable: bool = False) -> None:
        """Make the lines visible to readers; with ``durable``, also after a power cut."""
        if self.folder is None:
            return
        with naming(self.path):
            self.file.flush()
            if durable:
                fsync_file(self.path)
        self._each(lambda tracker: tracker.flush())

    def close(self) -> None:
        """Close the file and the trackers."""
        if self.folder is not None:
            self.file.close()
            self._each(lambda tracker: tracker.close())

    def _add_tracker(self, make: Callable[[], _TensorBoard | _Wandb]) -> None:
        try:
            self.trackers.append(make())
        except Exception as error:
            self._report(error)

    def _each(self, action: Callable[[_TensorBoard | _Wandb], None]) -> None:
        for tracker in [*self.trackers]:
            try:
                action(tracker)
            except Exception as error:  # a full disk, or whatever a library raises
                self.trackers.remove(tracker)
                self._report(error)

    def _report(self, error: Exception) -> None:
        self.say(f"a tracker failed and is off for this attempt; the training continues: {error}")


class _TensorBoard:
    """TensorBoard's event file, written synchronously, so that errors reach the caller."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self.records = RecordWriter((folder / name).open("wb"))
        self._write(file_version="brain.Event:2")
        # TensorBoard drops what an earlier attempt wrote from this step on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=first_step, session_log=start)

    def _write(self, **fields: Any) -> None:
        self.records.write(self.event(wall_time=time.time(), **fields).SerializeToString())

    def log(self, numbers: dict[str, float], step: int) -> None:
        values = [self.summary.Value(tag=tag, simple_value=v) for tag, v in numbers.items()]
        self._write(step=step, summary=self.summary(value=values))

    def flush(self) -> None:
        self.records.flush()

    def close(self) -> None:
        self.records.close()


def _wandb_is_missing() -> str:
    """Return what keeps Weights & Biases from working; '' if nothing does."""
    if not os.environ.get("WANDB_API_KEY") and os.environ.get("WANDB_MODE") != "offline":
        return "WANDB_API_KEY is not (WANDB_MODE=offline needs no key)"
    try:
        import wandb  # noqa: F401
    except ImportError:
        return "wandb is not installed (pip install wandb)"
    return ""


class _Wandb:
    """A W&B run, in a thread: without a network wandb.init takes 90 s to fail."""

    def __init__(self, project: str, folder: Path, say: Say) -> None:
        self.project, self.folder, self.say = project, folder, say
        self.lines: queue.SimpleQueue[tuple[dict[str, float], int] | None] = queue.SimpleQueue()
        self.has_failed = False
        self.thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            import wandb

            # The id is the run's name: an attempt that resumes continues the same W&B run.
            name, project = self.folder.name, self.project
            run = wandb.init(project=project, id=name, name=name, dir=self.folder, resume="allow")
            while (line := self.lines.get()) is not None:
                numbers, step = line
                run.log(numbers, step=step)
            run.finish()
        except BaseException as error:  # wandb.init may also raise SystemExit
            self.has_failed = True
            self.say(f"Weights & Biases failed; the training continues without it: {error}")

    def log(self, numbers: dict[str, float], step: int) -> None:
        if not self.has_failed:
            self.lines.put((numbers, step))

    def flush(self) -> None:
        """Do nothing: W&B uploads in the background."""

    def close(self) -> None:
        self.lines.put(None)
        self.thread.join(WANDB_CLOSE_TIMEOUT_S)
        if self.thread.is_alive():
            self.say(
                f"Weights & Biases did not finish within {WANDB_CLOSE_TIMEOUT_S:.0f} s; "
                "upload the rest with `wandb sync`"
            )
