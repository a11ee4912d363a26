"""Fixtures: a checkout, and three empty volumes on the stand-in for Modal."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from runner.cli import main
from runner.console import CliContext
from runner.targets.modal.volume import modal_name, open_volume
from tests.modal_standin import ModalStandin

ROOT = Path(__file__).resolve().parents[3]

MIB = 1024 * 1024

number = itertools.count()


@pytest.fixture(scope="package")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModalStandin]:
    with ModalStandin(tmp_path_factory.mktemp("modal") / "state") as running, running.active():
        yield running
        assert running.errors() == []
        assert running.unimplemented() == []


class Cloud:
    """The volumes as folders on disk, and the block transfers since ``forget()``."""

    def __init__(self, standin: ModalStandin, environ: dict[str, str]) -> None:
        self.standin, self.environ = standin, environ
        self._before = 0
        for volume in ("data", "checkpoints", "cache"):
            open_volume(volume, environ)
        self.forget()

    def folder(self, volume: str) -> Path:
        return self.standin.volume_path(modal_name(volume, self.environ))

    def put(self, volume: str, path: str, content: bytes, age: float = 1000.0) -> Path:
        """Write a file as if ``age`` seconds ago."""
        file = self.folder(volume) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}.new")
        new.write_bytes(content)
        os.utime(new, (time.time() - age,) * 2)
        # Replace the file: blocks on Modal never change, and the stand-in uses hard links.
        new.replace(file)
        return file

    def age(self, volume: str, seconds: float = 1000.0) -> None:
        for file in self.folder(volume).rglob("*"):
            os.utime(file, (int(time.time() - seconds),) * 2)

    def forget(self) -> None:
        self._before = len(self.standin.http_requests())

    def transfers(self) -> list[str]:
        """Return the BlockGet and BlockPut requests since ``forget``."""
        return [name for name, _ in self.standin.http_requests()[self._before :]]


@pytest.fixture
def environ(standin: ModalStandin, tmp_path: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME")}
    return {**kept, **standin.environ, "GPT_RUNNER_VOLUMES": f"test{next(number)}-"}


@pytest.fixture
def cloud(standin: ModalStandin, environ: dict[str, str]) -> Iterator[Cloud]:
    yield Cloud(standin, environ)
    standin.clear_faults()
    standin.volume_rules()


@pytest.fixture
def local(checkout: Path) -> Path:
    """Return the checkout's volumes/, with the three folders."""
    for volume in ("data", "checkpoints", "cache"):
        (checkout / "volumes" / volume).mkdir(parents=True, exist_ok=True)
    return checkout / "volumes"


@pytest.fixture
def cli(checkout: Path, environ: dict[str, str], cloud: Cloud, local: Path) -> CliContext:
    return CliContext(environ=environ, cwd=checkout, terminal=False, only_given_targets=True)


@pytest.fixture
def invoke(cli: CliContext) -> Callable[..., Result]:
    """Return ``invoke("runner pull data")``, whose result has exit_code, stdout and stderr."""

    def invoke_line(line: str) -> Result:
        return CliRunner().invoke(main, shlex.split(line)[1:], obj=cli)

    return invoke_line


@pytest.fixture
def start(
    environ: dict[str, str], checkout: Path, local: Path
) -> Callable[[str], subprocess.Popen[str]]:
    """Return a function that runs a command line in a process, which a test can kill."""

    def start_line(line: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "runner", *shlex.split(line)[1:]],
            cwd=checkout,
            env={**environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=enable_ctrl_c,
        )

    return start_line


def enable_ctrl_c() -> None:
    """Restore SIGINT in a child process: a background shell ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def random_bytes(size: int, seed: int = 0) -> bytes:
    """Return random bytes, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def flip_a_bit(path: Path) -> None:
    """Damage a file without changing its size."""
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below the folder, by name."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def write_checkpoint(run: Path, step: int, size: int = 1000, seed: int | None = None) -> Path:
    """Write a checkpoint as model/checkpoint.py does, and ``latest``."""
    folder = run / f"step_{step:08d}"
    folder.mkdir(parents=True)
    contents = {
        "model.safetensors": random_bytes(size, step if seed is None else seed),
        "optimizer.safetensors": random_bytes(2 * size, step + 1),
        "state.json": json.dumps({"step": step}).encode(),
    }
    manifest = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    contents["manifest.json"] = json.dumps(manifest, indent=2).encode()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (run / "latest").write_text(folder.name + "\n")
    return folder


def write_run(run: Path, steps: list[int], status: str = "finished", size: int = 1000) -> Path:
    """Write a run with records and checkpoints."""
    for step in steps:
        write_checkpoint(run, step, size)
    run.mkdir(parents=True, exist_ok=True)
    record = {"name": run.name, "status": status, "step": steps[-1] if steps else 0}
    (run / "run.json").write_text(json.dumps(record))
    (run / "recipe.yaml").write_text("train: {}\n")
    (run / "log.txt").write_text("started\n")
    (run / "metrics.jsonl").write_text('{"step": 0}\n')
    (run / "lock").write_text("process 1 on elsewhere\n")
    (run / "heartbeat").touch()
    (run / "tensorboard").mkdir(exist_ok=True)
    (run / "tensorboard" / "events.out.tfevents.1").write_bytes(b"curves")
    (run / "samples").mkdir(exist_ok=True)
    (run / "samples" / "step_00000010.txt").write_text("def f")
    (run / "profile.bin").write_bytes(b"not a record")
    return run
