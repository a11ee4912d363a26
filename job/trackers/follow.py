"""Send what a job writes into its run's folder to one tracker.

The job starts it as ``python -m job.trackers.follow JSON`` and ends it by closing its stdin.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import sys
import traceback
from dataclasses import asdict, dataclass, field
from io import TextIOBase
from pathlib import Path
from typing import Any

import yaml

from job.files import write_atomically
from job.format import one_line
from job.metrics import LineReader, parse_line
from job.run_record import RunStatus, read_record
from job.step_folders import step_folder
from job.trackers import (
    VARIABLES,
    LoggedStep,
    TrackedRun,
    Tracker,
    TrackerState,
    clients,
    read_state,
    state_path,
)

POLL_INTERVAL_S = 1.0
COMMIT_LENGTH = 12
MAX_ERROR = 500
END_TIMEOUT_S = 600  # after the job's end, when nothing waits for this process anymore


@dataclass
class Follower:
    """Groups the lines by step and sends each step once."""

    folder: Path
    tracker: Tracker
    state: TrackerState
    lines: LineReader
    _step: int = -1
    _numbers: dict[str, float] = field(default_factory=dict)

    def poll(self, is_over: bool = False) -> bool:
        """Send the complete steps, or all if the job is over; return True if there were any."""
        ready: list[LoggedStep] = []
        for line in filter(None, map(parse_line, self.lines.read())):
            kind, step = line["kind"], line["step"]
            if step <= self.state.step:
                continue
            if step != self._step:
                ready += self._take()
                self._step = step
            values = ((key, value) for key, value in line.items() if key not in ("kind", "step"))
            numbers = {f"{kind}/{k}": float(v) for k, v in values if isinstance(v, int | float)}
            self._numbers |= numbers
        ready += self._take() if is_over else []
        if ready:
            self.tracker.log(ready)
        return bool(ready)

    def _take(self) -> list[LoggedStep]:
        step, numbers = self._step, self._numbers
        self._step, self._numbers = -1, {}
        if step <= self.state.step:
            return []
        self.state.step = step
        paths = sorted((self.folder / "samples").glob("step_????????.txt"))
        samples = [(int(path.stem[5:]), path) for path in paths if int(path.stem[5:]) <= step]
        if not samples or samples[-1][0] <= self.state.sample:
            return [LoggedStep(step, numbers)]
        self.state.sample = samples[-1][0]
        texts = [(at, path.read_text(encoding="utf-8", errors="replace")) for at, path in samples]
        return [LoggedStep(step, numbers, texts)]


def open_run(folder: Path, project: str, tags: list[str]) -> TrackedRun:
    """Describe the run by its record, with the recipe or an experiment's arguments as config."""
    record, recipe = read_record(folder), folder / "recipe.yaml"
    if record is None:
        raise FileNotFoundError(f"{folder}/run.json is missing or damaged")
    attempt = record.attempts[-1]
    metadata = {
        "commit": str(record.git.get("commit") or "")[:COMMIT_LENGTH],
        "target": str(attempt.launch.get("target") or "host"),
        "gpu": str(attempt.launch.get("gpu") or attempt.device),
    }
    return TrackedRun(
        folder=folder,
        id=f"{record.name}-{record.created:.0f}",
        name=record.name,
        project=project,
        config=yaml.safe_load(recipe.read_bytes()) if recipe.exists() else record.arguments,
        group=attempt.launch.get("sweep"),
        metadata={key: value for key, value in metadata.items() if value},
        tags=tags,
    )


def follow(arguments: dict[str, Any]) -> None:
    """Open the tracker, send everything until stdin is closed, and close the tracker."""
    folder, name = Path(arguments["folder"]), arguments["name"]
    # The process of an earlier attempt may still be sending.
    fcntl.flock(os.open(folder / f"tracker_{name}.log", os.O_RDONLY), fcntl.LOCK_EX)
    path, state = state_path(folder, name), read_state(folder, name)
    run = open_run(folder, arguments["project"], arguments["tags"])
    tracker: Tracker = getattr(clients, f"{name.capitalize()}Tracker")(run)
    state.step = state.step if tracker.last_step is None else tracker.last_step
    state.url, state.error = tracker.url, ""
    write_atomically(path, json.dumps(asdict(state)))
    follower = Follower(folder, tracker, state, LineReader(folder / "metrics.jsonl"))
    is_over = False
    while not is_over:
        is_over = bool(select.select([sys.stdin], [], [], POLL_INTERVAL_S)[0])
        if is_over:
            signal.alarm(END_TIMEOUT_S)
        if follower.poll(is_over):
            write_atomically(path, json.dumps(asdict(state)))
    record = read_record(folder)
    if arguments["upload"] and record is not None and record.status == RunStatus.FINISHED:
        tracker.upload(step_folder(folder, record.step))
    tracker.close()


def redact(text: str) -> str:
    """Return the text without the keys, and passwords in URLs, that libraries put into errors."""
    for name in VARIABLES:
        if value := os.environ.get(name):
            text = text.replace(value, f"${name}")
    return re.sub(r"//[^/@\s]+@", "//", text)


class RedactedStream(TextIOBase):
    """The standard error stream, for this process's log in the run's folder."""

    def write(self, text: str) -> int:
        assert sys.__stderr__ is not None
        return sys.__stderr__.write(redact(text))


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the job decides when this process ends
    sys.stdout = sys.stderr = RedactedStream()
    arguments = json.loads(sys.argv[1])
    folder, name = Path(arguments["folder"]), arguments["name"]
    try:
        follow(arguments)
    except BaseException as error:  # a library may also raise SystemExit
        traceback.print_exc()
        state = read_state(folder, name)
        state.error = one_line(redact(f"{type(error).__name__}: {error}"))[:MAX_ERROR]
        write_atomically(state_path(folder, name), json.dumps(asdict(state)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
