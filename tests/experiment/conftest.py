"""Run experiments as separate processes, in a folder with volumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from job.paths import CHECKOUT, VolumePaths


@dataclass
class Workspace:
    """A user's folder with its own volumes: write files, run them, read their runs."""

    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def write(self, name: str, code: str) -> Path:
        path = self.folder / name
        path.write_text(code, encoding="utf-8")
        return path

    def start(
        self, *words: str, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start ``python -P -m experiment.run WORDS`` in the folder."""
        environ = {
            **os.environ,
            **VolumePaths.under(self.folder / "volumes").environment(),
            "PYTHONPATH": str(CHECKOUT),
            "OMP_NUM_THREADS": "1",
            **(env or {}),
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "experiment.run", *words],
            cwd=self.folder,
            env=environ,
            text=True,
            **{**pipes, **options},
        )
        self.started.append(process)
        return process

    def run(self, *words: str, status: int = 0, **options: Any) -> tuple[str, str]:
        process = self.start(*words, **options)
        out, err = process.communicate(timeout=120)
        assert process.returncode == status, f"exit {process.returncode}\n{out}\n{err}"
        return out, err

    def run_folder(self, name: str) -> Path:
        return self.folder / "volumes" / "checkpoints" / name

    def record(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.run_folder(name) / "run.json").read_text()))

    def log(self, name: str) -> str:
        try:
            return (self.run_folder(name) / "log.txt").read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    made = Workspace(tmp_path)
    yield made
    for process in made.started:
        with process:  # closes this end of its pipes; a child process may hold the other
            process.kill()
