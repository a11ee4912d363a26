"""External programs of this machine: subprocesses, the Docker engine, Compose, GPUs.

And polling.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from job.typed_json import read_object
from runner.errors import RunnerError

COMMAND_TIMEOUT_S = 20.0  # an engine that is starting up responds slowly
POLL_INTERVAL_S = 0.1


@dataclass(frozen=True)
class CompletedCommand:
    """The exit status and output of a program."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """Return the last line of the output, for an error message."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1].strip() if lines else f"exit status {self.code}"


@dataclass(frozen=True)
class Engine:
    """The Docker engine; ``problem`` says why none is available."""

    version: str = ""
    runtimes: tuple[str, ...] = ()
    problem: str = ""
    clock: str = ""  # its system time, ISO 8601


@dataclass
class System:
    """Programs found through ``environ``'s PATH; each property asks once and caches the answer."""

    environ: Mapping[str, str] = field(repr=False)

    def program(self, name: str) -> str | None:
        """Return the program's path; None if it is not installed."""
        return shutil.which(name, path=self.environ.get("PATH"))

    def call(
        self,
        command: Sequence[str],
        cwd: Path | None = None,
        timeout_s: float = COMMAND_TIMEOUT_S,
        extra_env: Mapping[str, str] | None = None,
    ) -> CompletedCommand:
        """Run a program and capture its output.

        The exit status is 127 if it is not installed, 126 if it can't start, 124 if it times out.
        """
        program = self.program(command[0])
        if program is None:
            return CompletedCommand(127, "", f"{command[0]} is not installed")
        try:
            done = subprocess.run(
                [program, *command[1:]],
                cwd=cwd,
                env={**self.environ, **(extra_env or {})},
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                stdin=subprocess.DEVNULL,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            words = " ".join(command[:2])
            return CompletedCommand(124, "", f"{words} did not answer within {timeout_s:.0f} s")
        except OSError as error:
            return CompletedCommand(126, "", str(error))
        return CompletedCommand(done.returncode, done.stdout, done.stderr)

    def command_line(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs ``command``."""
        return [str(self.program(command[0])), *command[1:]]

    def run_visibly(
        self, command: Sequence[str], content: bytes = b"", cwd: Path | None = None
    ) -> int:
        """Run a program with ``content`` as its stdin, and return its exit status.

        Its output goes to stderr: stdout belongs to the job.
        """
        try:
            stderr = sys.stderr.fileno()
        except (AttributeError, OSError, ValueError):
            stderr = None
        environ = dict(self.environ)
        return subprocess.run(
            self.command_line(command),
            cwd=cwd,
            env=environ,
            input=content,
            stdout=stderr,
            check=False,
        ).returncode

    @cached_property
    def engine(self) -> Engine:
        """Return the Docker engine."""
        if self.program("docker") is None:
            return Engine(problem="docker is not installed")
        answer = self.call(["docker", "info", "--format", "{{json .}}"])
        try:
            info = read_object(answer.out)
        except ValueError:
            info = {}
        if not info.get("ServerVersion"):
            errors = info.get("ServerErrors") or [answer.last_line]
            return Engine(problem=f"no Docker engine answers: {str(errors[0]).strip()}")
        devices = [str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or []]
        cdi = ["nvidia"] if any("nvidia.com/gpu" in device for device in devices) else []
        return Engine(
            str(info["ServerVersion"]),
            (*(info.get("Runtimes") or {}), *cdi),
            clock=str(info.get("SystemTime") or ""),
        )

    @cached_property
    def compose(self) -> tuple[str, ...] | None:
        """Return the command of Compose: the docker plugin, else the program docker-compose."""
        if self.program("docker") and self.call(["docker", "compose", "version"]).code == 0:
            return ("docker", "compose")
        return ("docker-compose",) if self.program("docker-compose") else None

    @cached_property
    def compose_version(self) -> str:
        """Return the version of Compose, such as 1.29.2."""
        if self.compose is None:
            return ""
        return self.call([*self.compose, "version", "--short"]).out.strip().removeprefix("v")

    @cached_property
    def gpus(self) -> list[str]:
        """Return the names of the NVIDIA GPUs, as nvidia-smi lists them."""
        answer = self.call(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
        if answer.code:
            return []
        return [line.strip() for line in answer.out.splitlines() if line.strip()]

    @property
    def engine_gives_gpus(self) -> bool:
        """Return True if containers can use the GPUs: the NVIDIA Container Toolkit is installed."""
        toolkit = (
            "nvidia" in self.engine.runtimes
            or self.program("nvidia-container-runtime-hook") is not None
        )
        return bool(self.gpus) and toolkit


def is_container_id(host: str) -> bool:
    """Return True if a host name is a container's: the first 12 digits of its id."""
    return re.fullmatch(r"[0-9a-f]{12}", host) is not None


def wait_until(condition: Callable[[], bool], timeout_s: float, message: str) -> None:
    """Poll ``condition`` until it holds.

    Raises RunnerError with ``message`` after ``timeout_s``.
    """
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise RunnerError(message)
        time.sleep(POLL_INTERVAL_S)
