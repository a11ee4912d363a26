"""A small checkout, the stand-in for Modal, and the runner as a subprocess."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.modal_standin import ModalStandin, StandinError
from tests.tiny_recipe import write_recipe, write_text

ROOT = Path(__file__).resolve().parents[4]

COPIED = (".gitignore", ".dockerignore", "Dockerfile", "requirements.lock", "docker-compose.yml")

HOOK = "step_hook"  # a module in the checkout
STEP_HOOK = "TRAIN_STEP_HOOK"  # the variable that names it; model/attempt.py reads it


@dataclass
class CloudFixture:
    """A checkout, a stand-in for Modal, and the processes started in it."""

    checkout: Path
    modal: ModalStandin
    environ: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        """Start `runner WORDS` with pipes for stdout and stderr."""
        process = subprocess.Popen(
            [sys.executable, "-c", "from runner.cli import main; main()", *words],
            cwd=self.checkout,
            env={**self.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *words: str, status: int = 0, **variables: str) -> tuple[str, str]:
        """Run to the end, expecting exit status ``status``; return stdout and stderr."""
        return self.finish(self.start(*words, **variables), status)

    def finish(self, process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
        """Wait for a process, expecting exit status ``status``; return stdout and stderr."""
        out, err = process.communicate(timeout=300)
        assert process.returncode == status, (
            f"exit {process.returncode}\n{out}\n{err}\n{self.modal.log()[-3000:]}"
        )
        return out, err

    def train(self, *words: str, status: int = 0, **variables: str) -> tuple[str, str]:
        """Run `runner cloud tiny -y`."""
        return self.run("cloud", "tiny", "-y", *words, status=status, **variables)

    def volume(self, name: str) -> Path:
        return self.modal.volume_path(f"gpt-runner-{name}")

    def run_folder(self, name: str = "tiny") -> Path:
        return self.volume("checkpoints") / name

    def metrics(self, name: str = "tiny") -> str:
        """Return the metrics so far; '' before the first."""
        try:
            return (self.run_folder(name) / "metrics.jsonl").read_text()
        except (StandinError, FileNotFoundError):
            return ""

    def committed(self, name: str = "tiny") -> list[str]:
        """Return the names in the run's folder on the volume."""
        try:
            return [path.name for path in self.run_folder(name).iterdir()]
        except (StandinError, FileNotFoundError):
            return []

    def wait_for_step(self, step: int, name: str = "tiny") -> None:
        """Wait until the metrics have that step."""
        self.modal.wait_until(lambda: f'"step": {step},' in self.metrics(name), 60)

    def hook_steps(self, body: str, setup: str = "") -> None:
        """Have trainers that start from now on run ``setup`` once and ``body`` after each step."""
        (self.checkout / f"{HOOK}.py").write_text(
            f"import signal, time\nfrom pathlib import Path\n{setup}\n\n"
            f"def after_step(step, stop):\n    {body}\n"
        )

    def slow_down(self, seconds: float) -> None:
        """Make each step take this much longer, so that a run can be interrupted."""
        self.hook_steps(f"time.sleep({seconds})")

    @property
    def go(self) -> Path:
        """Return a path that the stand-in's containers see too; they have a separate /tmp."""
        return Path("/dev/shm") / f"gpt-runner-{os.getpid()}-{self.checkout.parent.name}"

    def hold_at(self, *steps: int) -> Path:
        """Hold the trainer at each step until it gets a signal or the returned file exists.

        A signal sent meanwhile reaches a running trainer, however slow the machine is.
        """
        condition = f"step in {steps} and not stop.received and not Path({str(self.go)!r}).exists()"
        self.hook_steps(f"while {condition}: time.sleep(0.01)")
        return self.go

    def ledger(self, name: str = "tiny") -> dict[str, Any]:
        return dict(json.loads((self.run_folder(name) / "cloud.json").read_text()))

    def weights(self, name: str = "tiny") -> bytes:
        step = (self.run_folder(name) / "latest").read_text().strip()
        return (self.run_folder(name) / step / "model.safetensors").read_bytes()

    def steps(self, name: str = "tiny") -> list[int]:
        """Return the steps in the metrics, in order."""
        lines = (self.run_folder(name) / "metrics.jsonl").read_text().splitlines()
        return [row["step"] for row in map(json.loads, lines) if row["kind"] == "train"]


def train_here(checkout: Path, *overrides: str) -> None:
    """Train the same run without interruption on this machine."""
    subprocess.run(
        [sys.executable, "-m", "model.train", "tiny", *overrides],
        cwd=checkout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)},
        check=True,
        capture_output=True,
    )


@cache
def measure_start_seconds() -> float:
    """Return the seconds that a training without a network takes to start; they grow with load."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", f"{__package__}.light_attempt"], cwd=ROOT, check=True)
    return time.monotonic() - began


def make_checkout(folder: Path) -> Path:
    """Create a checkout with the real trainer and the recipe ``tiny``."""
    folder.mkdir()
    for name in COPIED:
        shutil.copy(ROOT / name, folder / name)
    for package in ("corpus", "experiment", "inference", "job", "model", "serving"):
        shutil.copytree(ROOT / package, folder / package)
    add_tiny(folder)
    (folder / f"{HOOK}.py").write_text("def after_step(step, stop): pass\n")
    return folder


def use_light_attempts(cloud: CloudFixture) -> CloudFixture:
    """Give trainings no network, and so no torch to import."""
    shutil.copy(Path(__file__).with_name("light_attempt.py"), cloud.checkout / "model/attempt.py")
    return cloud


def add_tiny(checkout: Path) -> None:
    """Add the recipe ``tiny`` and its text."""
    write_recipe(checkout / "configs" / "tiny.yaml", "texts/text.txt")
    write_text(checkout / "texts" / "text.txt")


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[CloudFixture]:
    """Open a fixture whose volumes show every write immediately."""
    with cloud_with(tmp_path) as made:
        yield made


@pytest.fixture
def light_cloud(tmp_path: Path) -> Iterator[CloudFixture]:
    """Open a fixture whose trainings have no network."""
    with cloud_with(tmp_path) as made:
        yield use_light_attempts(made)


@pytest.fixture
def strict_cloud(tmp_path: Path) -> Iterator[CloudFixture]:
    """Open a fixture whose volumes show only committed files."""
    with cloud_with(tmp_path, strict_commits=True) as made:
        yield made


@contextmanager
def cloud_with(
    tmp_path: Path, strict_commits: bool = False, **variables: str
) -> Iterator[CloudFixture]:
    """Open a fixture whose containers have these ``variables``."""
    options: dict[str, Any] = {"strict_commits": True} if strict_commits else {}
    checkout = make_checkout(tmp_path / "checkout")
    with open_cloud(checkout, tmp_path, container_env=variables, **options) as made:
        yield made


@contextmanager
def open_cloud(checkout: Path, folder: Path, **options: Any) -> Iterator[CloudFixture]:
    """Open a fixture with the stand-in's state in ``folder`` and its ``options``."""
    # For matrices of 32 x 32, more threads than cores are slower.
    options["container_env"] = {
        "OMP_NUM_THREADS": "1",
        STEP_HOOK: HOOK,
        **options.get("container_env", {}),
    }
    with ModalStandin(folder / "state", **{"grace": 20.0, **options}) as modal:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}
        environ = {**kept, **modal.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
        made = CloudFixture(checkout, modal, environ)
        yield made
        made.go.unlink(missing_ok=True)
        for process in made.started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate()
        assert modal.errors() == []
        assert modal.unimplemented() == []
