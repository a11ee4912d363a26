"""The metrics of a run: metrics.jsonl, which other trackers follow, TensorBoard, and its GPUs."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.files import fsync_file, name_in_errors
from job.format import json_text
from job.trackers.tensorboard import TensorBoard

NVIDIA_SMI_TIMEOUT_S = 30.0  # 8 GPUs of a machine that has just started respond slowly
MONITOR_INTERVAL_S = 10.0


def query_gpus(fields: str, environ: Mapping[str, str] | None = None) -> list[str]:
    """Return fields of nvidia-smi, a line for each GPU; empty if it is missing or fails."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            env=environ,
            capture_output=True,
            text=True,
            timeout=NVIDIA_SMI_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in answer.stdout.splitlines()] if answer.returncode == 0 else []


def gpu_values() -> dict[str, float]:
    """Return ``gpu_use_0`` (0 to 1), ``gpu_memory_0`` (bytes), ``gpu_clock_0`` (Hz) and so on."""
    values: dict[str, float] = {}
    for gpu, line in enumerate(query_gpus("utilization.gpu,memory.used,clocks.sm")):
        try:
            use, memory, clock = (float(word) for word in line.split(","))
        except ValueError:  # "[N/A]", as a MIG slice answers
            continue
        values[f"gpu_use_{gpu}"] = use / 100
        values[f"gpu_memory_{gpu}"] = memory * 2**20
        values[f"gpu_clock_{gpu}"] = clock * 1e6
    return values


class GpuMonitor:
    """Polls nvidia-smi in a thread: it can take seconds to answer."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self._closed = threading.Event()
        if shutil.which("nvidia-smi"):
            threading.Thread(target=self._poll, name="gpus", daemon=True).start()

    def close(self) -> None:
        """Stop polling."""
        self._closed.set()

    def _poll(self) -> None:
        while not self._closed.is_set():
            self.values = gpu_values()
            self._closed.wait(MONITOR_INTERVAL_S)


EVALUATION = b'"kind": "val"'

Line = dict[str, Any]
Report = Callable[[str], None]


def parse_line(text: bytes) -> Line | None:
    """Return a line of metrics.jsonl; None if a kill or a power loss damaged it."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_valid = isinstance(line, dict) and "kind" in line and isinstance(line.get("step"), int)
    return line if is_valid else None


@dataclass
class LineReader:
    """Reads the new lines of a file, from its start again if it was cut or replaced."""

    path: Path
    offset: int = 0  # of the first line
    _inode: int | None = None

    def read(self) -> Iterator[bytes]:
        """Yield the complete lines since the last call; none while the file can't be read."""
        with suppress(OSError), self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            if self._inode in (None, status.st_ino) and self.offset <= status.st_size:
                file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._inode, self.offset = status.st_ino, file.tell()
                yield line


def read_metrics(path: Path) -> list[Line]:
    """Return the undamaged lines of a metrics.jsonl."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        return [line for text in file if (line := parse_line(text)) is not None]


def sample_metrics(path: Path, points: int) -> list[Line]:
    """Return every evaluation of a metrics.jsonl, and about ``points`` of its other lines."""
    if not path.exists() or path.stat().st_size == 0:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        places = [len(content) * i // points for i in range(points)]
        at = content.find(EVALUATION)
        while at >= 0:
            places.append(at)
            at = content.find(EVALUATION, at + 1)
        starts = sorted({content.rfind(b"\n", 0, place) + 1 for place in places})
        lines = [parse_line(content[start : content.find(b"\n", start)]) for start in starts]
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
                line = parse_line(content[start:end])
                if line is not None and line["step"] <= step:
                    break
                end = start
        file.truncate(end)


class Metrics:
    """Writes one line for each logged step and evaluation of a run; nothing without a folder.

    A run that resumes at ``resume_step`` drops lines that an earlier attempt logged after it, so
    the file holds each step once.
    """

    def __init__(self, folder: Path | None, resume_step: int, report: Report) -> None:
        self.folder = folder
        self.gpus: GpuMonitor | None = None
        if folder is None:
            return
        self.gpus = GpuMonitor()
        self.path = folder / "metrics.jsonl"
        with name_in_errors(self.path):
            drop_lines_after(self.path, resume_step)
            self.file = self.path.open("a", encoding="utf-8", buffering=1)
        self.tensorboard = TensorBoard(folder / "tensorboard", resume_step + 1, report)

    def log(self, kind: str, step: int, **values: Any) -> None:
        """Write one line; ``kind`` is train, val, task or checkpoint."""
        if self.folder is None:
            return
        if kind == "train" and self.gpus is not None:
            values |= self.gpus.values
        with name_in_errors(self.path):
            self.file.write(json_text({"kind": kind, "step": step, **values}) + "\n")
        numbers = {f"{kind}/{key}": v for key, v in values.items() if isinstance(v, int | float)}
        self.tensorboard.log(numbers, step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Show a text in TensorBoard."""
        if self.folder is not None:
            self.tensorboard.text(tag, text, step)

    def flush(self, durable: bool = False) -> None:
        """Make the lines visible to readers; with ``durable``, also after a power loss."""
        if self.folder is None:
            return
        with name_in_errors(self.path):
            self.file.flush()
            if durable:
                fsync_file(self.path)
        self.tensorboard.flush()

    def close(self) -> None:
        """Close the files."""
        if self.gpus is not None:
            self.gpus.close()
            self.file.close()
            self.tensorboard.close()
