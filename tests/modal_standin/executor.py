"""Run containers. `ProcessExecutor` is the default; a test may pass another."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from . import processes
from .ids import new_id
from .settings import Settings
from .volume_views import View

ENTER = Path(__file__).with_name("enter_container.py")
POLL_INTERVAL_S = 0.02  # seconds
OWN_FOLDERS = (
    "/root",
    "/pkg",
    "/workspace",
    "/vol",
    "/job",
)  # a container never sees this machine's


@dataclass(frozen=True)
class Container:
    """The parameters of a container. `tree` has the files of its mounts."""

    task_id: str
    image_id: str
    folder: Path
    tree: Path
    command: Sequence[str]  # after the interpreter
    env: Mapping[str, str]
    workdir: str
    views: Sequence[View]
    program: str = ""  # instead of the interpreter, for a sandbox


class Running(Protocol):
    """A running container."""

    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader

    async def wait(self) -> int:
        """Return its exit status, negative for a signal, and kill its remaining processes."""

    def interrupt(self) -> None:
        """Send SIGINT to its first process."""

    async def kill(self) -> None:
        """Send SIGKILL to all its processes."""


class Executor(Protocol):
    async def start(self, container: Container) -> Running:
        """Start the container, and return it with its output streams."""


class ProcessExecutor:
    """Run containers as processes with their own file system; see `enter_container.py`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def start(self, container: Container) -> Running:
        process = await self.spawn(container, stdin=asyncio.subprocess.DEVNULL)
        return ProcessRunning(container.task_id, process)

    async def spawn(
        self, container: Container, stdin: int, stdout: int | None = None
    ) -> asyncio.subprocess.Process:
        """Start a process with the given standard streams; stdout and stderr default to pipes."""
        spec_file = self.write_spec(container)
        return await asyncio.create_subprocess_exec(
            self._settings.python,
            "-I",
            str(ENTER),
            str(spec_file),
            stdin=stdin,
            stdout=stdout if stdout is not None else asyncio.subprocess.PIPE,
            stderr=stdout if stdout is not None else asyncio.subprocess.PIPE,
            env=dict(container.env),
            start_new_session=True,
        )

    def write_spec(self, container: Container) -> Path:
        root = container.folder / "root"
        root.mkdir(exist_ok=True)
        python = self._settings.python
        first = [container.program] if container.program else [python, "-u"]
        hidden = [str(path) for path in self._settings.hidden if path.exists()]
        kept = {sys.prefix, sys.base_prefix, str(Path(python).parent.parent)}
        arguments = str(
            container.folder / "args"
        )  # of the entry point, at the path that they have outside
        binds = [{"source": arguments, "target": arguments, "read_only": True}]
        for view in container.views:
            binds.append(
                {"source": str(view.folder), "target": view.target, "read_only": view.read_only}
            )
        spec = {
            "root": str(root),
            "tree": str(container.tree),
            "own": [path for path in OWN_FOLDERS if os.path.exists(path)],
            "hidden": hidden,
            "kept": sorted(path for path in kept if _is_below(path, [*hidden, *OWN_FOLDERS])),
            "binds": binds,
            "argv": [*first, *container.command],
            "workdir": container.workdir,
        }
        file = container.folder / f"{new_id('spec')}.json"
        file.write_text(json.dumps(spec))
        return file


class ProcessRunning:
    def __init__(self, task_id: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._task_id = task_id
        self._process = process
        self.stdout = process.stdout
        self.stderr = process.stderr

    async def wait(self) -> int:
        while self._process.returncode is None and not processes.is_zombie(self._process.pid):
            await asyncio.sleep(POLL_INTERVAL_S)
        await self.kill()  # before waiting: a process with an open pipe would block the wait
        return await self._process.wait()

    def interrupt(self) -> None:
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGINT)

    async def kill(self) -> None:
        await asyncio.to_thread(processes.kill, self._task_id)


def _is_below(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(folder + "/") for folder in folders)
