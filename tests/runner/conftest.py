"""Fixtures: a checkout, and the command line in it with a fake target."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from runner.cli import main
from runner.console import CliContext
from tests.runner.fake_target import FakeTarget
from tests.runner.targets.docker_stand_in import DockerStandIn

ROOT = Path(__file__).resolve().parents[2]

RECIPE = """\
data:
  dataset: letters
  source: stdlib
  tokenizer: bytes
train:
  max_steps: 100
  global_batch_tokens: 2048
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a folder that looks like a checkout, with the recipes quickstart and warm."""
    folder = tmp_path / "checkout"
    for name in ("configs", "corpus", "job", "model"):
        (folder / name).mkdir(parents=True)
    (folder / "job" / "paths.py").touch()
    (folder / "docker-compose.yml").write_text("services: {}\n")
    (folder / "docker-compose.gpu.yml").write_text("services: {}\n")
    (folder / "Dockerfile").write_text("FROM debian\n")
    for name in ("quickstart", "warm"):
        (folder / "configs" / f"{name}.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def fake(checkout: Path) -> FakeTarget:
    return FakeTarget(checkout)


@pytest.fixture
def cli(checkout: Path, fake: FakeTarget) -> CliContext:
    return CliContext(
        environ={
            "PATH": os.environ["PATH"],
            "HOME": str(checkout.parent),
            "GPT_RUNNER_HOME": str(checkout.parent / "home"),  # the folder of the GPU queue
        },
        cwd=checkout,
        terminal=False,
        targets={"host": fake},
        only_given_targets=True,
    )


@pytest.fixture
def type_(cli: CliContext) -> Callable[[str], Result]:
    """Return ``type_("runner host lr=1")``, whose result has exit_code, stdout and stderr."""

    def type_line(line: str) -> Result:
        program, *words = shlex.split(line)
        assert program == "runner"
        return CliRunner().invoke(main, words, obj=cli)

    return type_line


@pytest.fixture
def docker(tmp_path: Path, cli: CliContext) -> DockerStandIn:
    """Put a stand-in for docker first in the runner's PATH."""
    stand_in = DockerStandIn(tmp_path / "docker")
    cli.environ = stand_in.variables
    return stand_in


@pytest.fixture
def make_run(checkout: Path) -> Callable[..., Path]:
    """Return ``make_run("warm", step=50, status="unfinished")``, which makes a run's folder."""

    def make(name: str, step: int | None = None, **record: object) -> Path:
        folder = checkout / "volumes" / "checkpoints" / name
        folder.mkdir(parents=True)
        attempt = {"started": 50.0, "ended": 60.0, "launch": {"target": "host"}}
        tree = {
            "name": name,
            "status": "finished",
            "step": step or 0,
            "max_steps": 100,
            "attempts": [attempt],
        }
        (folder / "run.json").write_text(json.dumps({**tree, **record}))
        (folder / "recipe.yaml").write_text(RECIPE)
        if step is not None:
            (folder / "latest").write_text(f"step_{step:08d}\n")
            (folder / f"step_{step:08d}").mkdir()
        return folder

    return make


@pytest.fixture
def spawn(checkout: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return ``spawn("host", "lr=1")``, which starts the runner as a process in the checkout."""
    program = tmp_path / "bin" / "runner"
    program.parent.mkdir()
    program.write_text("from runner.cli import main\nmain()\n")
    processes = []

    def start(*words: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(program), *words],
            cwd=checkout,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "GPT_RUNNER_HOME": str(tmp_path / "home"),
                **variables,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        with process:  # closes this end of its pipes; a child process may hold the other
            process.kill()


@pytest.fixture
def job(checkout: Path) -> Callable[[str], None]:
    """Return ``job(code)``, which replaces the code of ``python -m model.train``."""

    def write(code: str) -> None:
        for package in ("corpus", "model"):
            (checkout / package / "__init__.py").touch()
        (checkout / "model" / "train.py").write_text(code)

    return write
