"""A checkout that trains something tiny, the stand-in for Modal, and the runner as a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.modal_standin import ModalStandin, StandinError

ROOT = Path(__file__).resolve().parents[3]

RECIPE = """\
model: {variant: modern, n_layer: 1, n_head: 2, n_embd: 32, block_size: 32}
data: {dataset: tiny, source: texts/text.txt, tokenizer: bytes, split: tail}
train:
  max_steps: 60
  global_batch_tokens: 256
  micro_batch: 8
  lr: 3e-3
  warmup_steps: 5
  eval_every: 20
  eval_tokens: 1024
  checkpoint_every: 10
  log_every: 5
  keep_last: 3
sample: {prompt: "the ", max_new_tokens: 20}
"""
COPIED = (".gitignore", ".dockerignore", "Dockerfile", "requirements.lock", "docker-compose.yml")


@dataclass
class Lab:
    """A checkout beside a stand-in, and what was started in it."""

    checkout: Path
    modal: ModalStandin
    environ: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        """``runner WORDS`` as a process; stdout and stderr are pipes."""
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
        """Run to the end; it must exit with ``status``. stdout and stderr."""
        process = self.start(*words, **variables)
        out, err = process.communicate(timeout=120)
        assert process.returncode == status, (
            f"exit {process.returncode}\n{out}\n{err}\n{self.modal.log()[-3000:]}"
        )
        return out, err

    def train(self, *words: str, status: int = 0, **variables: str) -> tuple[str, str]:
        """``runner cloud tiny -y``."""
        return self.run("cloud", "tiny", "-y", *words, status=status, **variables)

    def volume(self, name: str) -> Path:
        return self.modal.volume_path(f"gpt-runner-{name}")

    def run_folder(self, name: str = "tiny") -> Path:
        return self.volume("checkpoints") / name

    def metrics(self, name: str = "tiny") -> str:
        """The metrics so far; '' before there are any."""
        try:
            return (self.run_folder(name) / "metrics.jsonl").read_text()
        except (StandinError, FileNotFoundError):
            return ""

    def committed(self, name: str = "tiny") -> list[str]:
        """Names in the run's folder on the volume."""
        try:
            return [path.name for path in self.run_folder(name).iterdir()]
        except (StandinError, FileNotFoundError):
            return []

    def wait_for_step(self, step: int, name: str = "tiny") -> None:
        """Until the metrics show that step."""
        self.modal.wait_until(lambda: f'"step": {step},' in self.metrics(name), 60)

    def slow_down(self, seconds: float) -> None:
        """Let a step of the trainer take that long: time enough to be interrupted."""
        trainer = self.checkout / "model" / "trainer.py"
        text = trainer.read_text()
        assert "self.progress.step += 1" in text
        trainer.write_text(
            text.replace("self.progress.step += 1", f"time.sleep({seconds}); self.progress.step += 1")
        )

    def ledger(self, name: str = "tiny") -> dict[str, Any]:
        return dict(json.loads((self.run_folder(name) / "cloud.json").read_text()))

    def weights(self, name: str = "tiny") -> bytes:
        step = (self.run_folder(name) / "latest").read_text().strip()
        return (self.run_folder(name) / step / "model.safetensors").read_bytes()

    def steps(self, name: str = "tiny") -> list[int]:
        """The steps in the metrics, in order."""
        lines = (self.run_folder(name) / "metrics.jsonl").read_text().splitlines()
        return [row["step"] for row in map(json.loads, lines) if row["kind"] == "train"]


def train_here(checkout: Path, *overrides: str) -> None:
    """The same run, unbroken, as a process of this machine."""
    subprocess.run(
        [sys.executable, "-m", "model.train", "tiny", *overrides],
        cwd=checkout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)},
        check=True,
        capture_output=True,
    )


def make_checkout(folder: Path) -> Path:
    """What the runner takes for a checkout, with the real trainer and the recipe ``tiny``."""
    folder.mkdir()
    for name in COPIED:
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "model", folder / "model", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "configs").mkdir()
    (folder / "configs" / "tiny.yaml").write_text(RECIPE)
    (folder / "texts").mkdir()
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run"]
    lines = (" ".join(words[(i * j + i) % 10] for j in range(7)) for i in range(600))
    (folder / "texts" / "text.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Volumes are seen as they are written."""
    with _lab(tmp_path) as made:
        yield made


@pytest.fixture
def strict_lab(tmp_path: Path) -> Iterator[Lab]:
    """A volume holds what was committed, and no more."""
    with _lab(tmp_path, strict_commits=True) as made:
        yield made


@contextmanager
def _lab(tmp_path: Path, **options: Any) -> Iterator[Lab]:
    checkout = make_checkout(tmp_path / "checkout")
    # More threads than cores are slower for matrices of 32 x 32.
    options |= {"grace": 20.0, "container_env": {"OMP_NUM_THREADS": "1"}}
    with ModalStandin(tmp_path / "state", **options) as modal:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}
        environ = {**kept, **modal.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
        made = Lab(checkout, modal, environ)
        yield made
        for process in made.started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate()
        assert modal.errors() == []
        assert modal.unimplemented() == []
