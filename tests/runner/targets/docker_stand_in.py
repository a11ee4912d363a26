"""A stand-in for docker on PATH that records its calls."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from runner.project import project_name

SCRIPT = Path(__file__).with_name("fake_docker.sh")

INFO = {"ServerVersion": "20.10.24", "Runtimes": {"runc": {}}}

CONFIG = """\
services:
  train: {image: gpt-runner}
  prepare: {image: gpt-runner}
  sample: {image: gpt-runner}
"""

GPU_CONFIG = """\
services:
  train:
    image: gpt-runner
    deploy:
      resources:
        reservations:
          devices: [{driver: nvidia, count: all, capabilities: [gpu]}]
"""


@dataclass
class DockerStandIn:
    """A fake docker: ``folder`` has its answers, ``bin`` the programs of the test's PATH."""

    folder: Path

    def __post_init__(self) -> None:
        self.bin = self.folder / "bin"
        self.bin.mkdir(parents=True)
        (self.bin / "docker").symlink_to(SCRIPT)
        for name in ("sh", "cat", "basename", "rm", "touch", "sleep", "git"):
            program = shutil.which(name)
            if program:
                (self.bin / name).symlink_to(program)
        self.answer("info.json", json.dumps(INFO))
        self.answer("compose_version", "1.29.2\n")
        self.answer("config.yaml", CONFIG)
        self.answer("ps", "")
        self.answer("job", "exit 0\n")

    @property
    def variables(self) -> dict[str, str]:
        return {
            "PATH": str(self.bin),
            "FAKE_DOCKER": str(self.folder),
            "HOME": str(self.folder),
            "GPT_RUNNER_HOME": str(self.folder / "home"),
            "WANDB_API_KEY": "",
        }

    def answer(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def calls(self, *first: str) -> list[list[str]]:
        """Return the calls that begin with the words ``first``."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        calls = [line.split("\x1f")[:-1] for line in lines]
        return [call for call in calls if call[: len(first)] == list(first)]

    def with_gpus(self, *names: str, toolkit: bool = True) -> None:
        """Give the machine these GPUs, and with ``toolkit`` let containers use them."""
        program = self.bin / "nvidia-smi"
        program.write_text("#!/bin/sh\n" + "".join(f"echo '{name}'\n" for name in names))
        program.chmod(0o755)
        self.answer(
            "gpus", "".join(f"GPU {n}: {name} (UUID: GPU-{n})\n" for n, name in enumerate(names))
        )
        if toolkit:
            self.answer("info.json", json.dumps({**INFO, "Runtimes": {"runc": {}, "nvidia": {}}}))

    def without_engine(self) -> None:
        """Make Docker report that no engine runs."""
        error = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is it running?"
        self.answer("info.json", json.dumps({"ServerErrors": [error]}))


def own_settings(checkout: Path) -> str:
    """Return the ``.env`` of ``checkout`` for the user who runs the tests."""
    return (
        f"COMPOSE_FILE=docker-compose.yml\nCOMPOSE_PROJECT_NAME={project_name(checkout)}\n"
        f"HOST_UID={os.getuid()}\nHOST_GID={os.getgid()}\n"
    )
