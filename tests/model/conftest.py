"""A tiny dataset and recipe, and jobs that run in their own processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from job.paths import CHECKOUT, VolumePaths
from tests.tiny_recipe import write_recipe, write_text
from tests.waiting import wait_for
from tests.warm_process import ONE_THREAD, WarmProcess

PACKAGES = dict.fromkeys(("chat", "evaluate", "export", "sample", "server"), "serving") | {
    "prepare": "corpus"
}

Process = subprocess.Popen[str] | WarmProcess
Unbroken = Callable[..., Path]


@dataclass
class Lab:
    """A folder with volumes, a text and a recipe, in which jobs run as processes.

    With ``warm``, processes are forks that have imported torch already.
    """

    folder: Path
    recipe: Path
    warm: bool = sys.platform == "linux"
    started: list[Process] = field(default_factory=list)

    @property
    def locations(self) -> VolumePaths:
        return VolumePaths.under(self.folder)

    def run_folder(self, name: str) -> Path:
        return self.locations.run(name)

    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.locations.environment(), **ONE_THREAD}

    def start(
        self, job: str, *words: str, processes: int = 1, machine: tuple[int, int, int] | None = None
    ) -> Process:
        """Start the job with pipes for stdout and stderr.

        ``machine`` is its rank, the number of machines, and the port of their rendezvous.
        """
        launcher = []
        if machine is not None:
            rank, machines, port = machine
            launcher += [
                "-m",
                "torch.distributed.run",
                f"--nnodes={machines}",
                f"--node-rank={rank}",
            ]
            launcher += [
                f"--nproc-per-node={processes}",
                "--master-addr=127.0.0.1",
                f"--master-port={port}",
            ]
        elif processes > 1:
            launcher += [
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc-per-node={processes}",
            ]
        what = [job] if job.endswith(".py") else ["-m", f"{PACKAGES.get(job, 'model')}.{job}"]
        process = self._python(*launcher, *what, *words)
        self.started.append(process)
        return process

    def _python(self, *command: str) -> Process:
        if self.warm and (
            command[0] == "-c" or command[1].startswith(("corpus.", "model.", "serving."))
        ):
            return WarmProcess(command, self.environment())
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=CHECKOUT,
            env=self.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )

    def run(self, job: str, *words: str, processes: int = 1, status: int = 0) -> tuple[str, str]:
        """Run the job, check its exit ``status``, and return stdout and stderr."""
        return self._end_of(self.start(job, *words, processes=processes), status)

    def run_python(self, code: str, status: int = 0) -> tuple[str, str]:
        """Run ``code`` in a new process, check its exit ``status``, return stdout and stderr."""
        self.started.append(self._python("-c", code))
        return self._end_of(self.started[-1], status)

    def _end_of(self, process: Process, status: int) -> tuple[str, str]:
        out, err = process.communicate(timeout=300)
        assert process.returncode == status, f"exit {process.returncode}\n{out}\n{err}"
        return out, err

    def train(
        self, name: str, *overrides: str, processes: int = 1, status: int = 0
    ) -> tuple[str, str]:
        words = (str(self.recipe), *overrides, "--name", name)
        return self.run("train", *words, processes=processes, status=status)

    def train_until_step(
        self, name: str, step: int, *overrides: str, how: signal.Signals, processes: int = 1
    ) -> int:
        """Train until ``step``, send the signal ``how``, and return the exit status."""
        words = (str(self.recipe), *overrides, "--name", name)
        process = self.start("train", *words, processes=processes)
        metrics = self.run_folder(name) / "metrics.jsonl"
        wait_for(lambda: f'"step": {step},' in _text(metrics) or process.poll() is not None, 120)
        assert process.poll() is None, process.communicate()[1]
        process.send_signal(how)
        process.communicate(timeout=120)
        return process.returncode


def make_lab(folder: Path) -> Lab:
    """Return a Lab with a text and a recipe, without runs."""
    return Lab(folder, write_recipe(folder / "tiny.yaml", str(write_text(folder / "text.txt"))))


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = make_lab(tmp_path)
    yield made
    for process in made.started:
        with process:  # closes this end of its pipes; a child process may hold the other
            process.kill()


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """``unbroken("max_steps=20")`` returns the folder of an uninterrupted run to compare with.

    Each run is trained once for all tests, in a new process instead of a fork.
    """
    shared = make_lab(tmp_path_factory.mktemp("unbroken"))
    shared.warm = False

    @cache
    def train(*overrides: str) -> Path:
        name = f"run-{len(list(shared.locations.checkpoints.glob('run-*')))}"
        shared.train(name, *overrides)
        return shared.run_folder(name)

    return train
