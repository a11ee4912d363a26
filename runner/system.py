"""What this machine has: an engine, compose, GPUs. Each is asked once, and late."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from runner.errors import RunnerError

# Seconds. An engine that is starting up answers late; one that hangs must not hang us.
PATIENCE = 20.0


@dataclass(frozen=True)
class CompletedCommand:
    """What a program said."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """Its last words, for an error of ours."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1].strip() if lines else f"exit status {self.code}"


@dataclass(frozen=True)
class Engine:
    """The Docker engine, or in ``problem`` why there is none."""

    version: str = ""
    runtimes: tuple[str, ...] = ()
    problem: str = ""
    clock: str = ""  # as it tells the time, ISO 8601


@dataclass
class System:
    """``environ`` gives PATH and DOCKER_HOST; nothing is remembered between two Machines."""

    environ: Mapping[str, str] = field(repr=False)

    def program(self, name: str) -> str | None:
        """Its path; None where it isn't installed."""
        return shutil.which(name, path=self.environ.get("PATH"))

    def call(
        self,
        command: Sequence[str],
        cwd: Path | None = None,
        patience: float = PATIENCE,
        more: Mapping[str, str] | None = None,
    ) -> CompletedCommand:
        """Run a program to its end and keep what it says; 127 where it isn't there, 124 where it hangs.

        ``patience`` is in seconds, ``more`` are further variables.
        """
        program = self.program(command[0])
        if program is None:
            return CompletedCommand(127, "", f"{command[0]} is not installed")
        try:
            done = subprocess.run(
                [program, *command[1:]],
                cwd=cwd,
                env={**self.environ, **(more or {})},
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                timeout=patience,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return CompletedCommand(
                124, "", f"{' '.join(command[:2])} did not answer within {patience:.0f} s"
            )
        except OSError as error:
            return CompletedCommand(126, "", str(error))
        return CompletedCommand(done.returncode, done.stdout, done.stderr)

    @cached_property
    def engine(self) -> Engine:
        """Whether an engine answers, and what it offers."""
        if self.program("docker") is None:
            return Engine(problem="docker is not installed")
        answer = self.call(["docker", "info", "--format", "{{json .}}"])
        tree = self._info(answer)
        if not tree.get("ServerVersion"):
            errors = tree.get("ServerErrors") or [answer.last_line]
            return Engine(problem=f"no Docker engine answers: {str(errors[0]).strip()}")
        devices = [str(device.get("ID", "")) for device in tree.get("DiscoveredDevices") or []]
        cdi = ["nvidia"] if any("nvidia.com/gpu" in device for device in devices) else []
        return Engine(
            str(tree["ServerVersion"]),
            (*(tree.get("Runtimes") or {}), *cdi),
            clock=str(tree.get("SystemTime") or ""),
        )

    @cached_property
    def compose(self) -> tuple[str, ...] | None:
        """The words that call compose: the plugin where docker has it, else the program of its own."""
        if self.program("docker") and self.call(["docker", "compose", "version"]).code == 0:
            return ("docker", "compose")
        return ("docker-compose",) if self.program("docker-compose") else None

    @cached_property
    def compose_version(self) -> str:
        """As it says it, for example 1.29.2."""
        if self.compose is None:
            return ""
        return self.call([*self.compose, "version", "--short"]).out.strip().removeprefix("v")

    @cached_property
    def gpus(self) -> list[str]:
        """The names of the NVIDIA GPUs, as nvidia-smi lists them."""
        answer = self.call(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
        return (
            [line.strip() for line in answer.out.splitlines() if line.strip()]
            if answer.code == 0
            else []
        )

    @property
    def engine_gives_gpus(self) -> bool:
        """Whether a container can have them: there are some, and the container toolkit is installed."""
        toolkit = (
            "nvidia" in self.engine.runtimes
            or self.program("nvidia-container-runtime-hook") is not None
        )
        return bool(self.gpus) and toolkit

    @staticmethod
    def _info(answer: CompletedCommand) -> dict[str, Any]:
        try:
            tree = json.loads(answer.out)
        except ValueError:
            return {}
        return tree if isinstance(tree, dict) else {}


# Seconds between two looks: short against a checkpoint, long against a look's cost.
PAUSE = 0.1


def wait_until(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Look until ``condition`` holds. Raises RunnerError with the text ``otherwise`` after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RunnerError(otherwise)
        time.sleep(PAUSE)
