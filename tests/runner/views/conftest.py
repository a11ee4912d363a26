"""A real process that writes a run's files like the trainer, controlled by the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest

from tests.runner.conftest import ROOT
from tests.waiting import wait_for

# Follows the file `commands`: "step N" trains to step N, "sample TEXT" writes a sample, and
# "exit CODE" exits.
SCRIPT = """
import json, os, sys, time
from pathlib import Path
from job.run_record import Attempt, RunRecord

folder = Path(os.environ["CHECKPOINTS_PATH"]) / sys.argv[sys.argv.index("--name") + 1]
(folder / "samples").mkdir(parents=True, exist_ok=True)
attempt = Attempt(time.time(), launch=json.loads(os.environ["RUN_LAUNCH"]), device="cpu")
record = RunRecord(folder.name, max_steps=100, attempts=[attempt])
record.write(folder)
commands = open(folder / "commands", "a+")
commands.seek(0)
step = 0
while True:
    word, _, rest = commands.readline().rstrip("\\n").partition(" ")
    if word == "step":
        with open(folder / "metrics.jsonl", "a") as file:
            for step in range(step + 1, int(rest) + 1):
                row = {"kind": "train", "step": step, "tokens": step * 100, "loss": 5.0 - step / 50,
                       "lr": 1e-3, "tokens_per_second": 200.0,
                       "mfu": 0.4125, "memory_bytes": 3 * 2**30}
                file.write(json.dumps(row) + "\\n")
            file.write(json.dumps({"kind": "val", "step": step, "loss": 4.5}) + "\\n")
        record.step = step
        record.write(folder)
    elif word == "sample":
        sample = folder / "samples" / f"step_{step:08d}.txt"
        sample.write_text(rest.encode().decode("unicode_escape"))
    elif word == "exit":
        record.status = {"0": "finished", "101": "unfinished"}.get(rest, "failed")
        attempt.ended, attempt.reason = time.time(), record.status
        record.write(folder)
        sys.exit(int(rest))
    elif not word:
        time.sleep(0.02)
"""


@dataclass
class ScriptedRun:
    """The active run ``quickstart`` on the host."""

    folder: Path

    def send(self, *lines: str) -> None:
        with (self.folder / "commands").open("a") as file:
            file.write("".join(line + "\n" for line in lines))

    def has(self, text: str, name: str = "metrics.jsonl") -> bool:
        path = self.folder / name
        return path.exists() and text in path.read_text()


@pytest.fixture
def active_run(
    spawn: Callable[..., subprocess.Popen[str]], job: Callable[[str], None], checkout: Path
) -> Iterator[ScriptedRun]:
    job(SCRIPT)
    assert spawn("host", "--detach").wait(60) == 0
    run = ScriptedRun(checkout / "volumes" / "checkpoints" / "quickstart")
    wait_for(lambda: (run.folder / "commands").exists())
    yield run
    run.send("exit 1")
    wait_for(lambda: json.loads((run.folder / "run.json").read_text())["status"] != "running")


@pytest.fixture
def on_terminal(checkout: Path) -> Iterator[Callable[..., pexpect.spawn[str]]]:
    """Return ``on_terminal("watch", size=(30, 100), NO_COLOR="1")``, which starts the runner."""
    opened: list[pexpect.spawn[str]] = []

    def start(
        *words: str, size: tuple[int, int] = (30, 100), **variables: str
    ) -> pexpect.spawn[str]:
        program = ["-c", "from runner.cli import main; main()", *words]
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
        inherited = ("NO_COLOR", "COLUMNS", "LINES")
        environ = {
            name: value for name, value in environ.items() if name not in inherited
        } | variables
        terminal = pexpect.spawn(
            sys.executable,
            program,
            cwd=str(checkout),
            env=environ,
            timeout=60,
            encoding="utf-8",
            dimensions=size,
        )
        opened.append(terminal)
        return terminal

    yield start
    for terminal in opened:
        terminal.close(force=True)
