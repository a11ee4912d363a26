"""The compose file as compose itself reads it, and how it is called. Works with 1.29 and with 2."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runner.console import CliContext
from runner.errors import RunnerError
from runner.jobs import JOBS
from runner.project import (
    COMPOSE_FILE,
    GPU_COMPOSE_FILE,
    OVERRIDE_COMPOSE_FILE,
    find_checkout,
    read_dotenv,
    update_dotenv,
    volumes,
)
from runner.system import System


@dataclass
class Compose:
    """Compose in one checkout. ``.env`` there chooses the files (COMPOSE_FILE)."""

    machine: System
    checkout: Path

    def command(self, *arguments: str) -> list[str]:
        """The words to run it. Raises RunnerError where it isn't installed."""
        if self.machine.compose is None:
            raise RunnerError(
                "docker is here and compose is not; install the plugin (docker-compose-plugin), "
                "`runner doctor` checks it"
            )
        program = self.machine.program(self.machine.compose[0])
        return [str(program), *self.machine.compose[1:], *arguments]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The merged compose file. Raises RunnerError, exit code 1, where compose finds it wrong."""
        # A service with a profile is left out of `config` unless its profile is named.
        profiles = [word for job in (*JOBS, "shell", "tensorboard") for word in ("--profile", job)]
        answer = self.machine.call(
            self.command(*profiles, "config"), cwd=self.checkout, patience=60
        )
        if answer.code:
            raise RunnerError(
                f"compose can't read its files: {answer.last_line}; `runner doctor` says more"
            )
        import yaml

        tree = yaml.safe_load(answer.out)
        return tree if isinstance(tree, dict) else {}

    @property
    def services(self) -> dict[str, Any]:
        """Service → its settings."""
        services = self.config.get("services") or {}
        return services if isinstance(services, dict) else {}

    def service_of(self, job: str) -> str:
        """The service that runs a job: its own, or that of train with another command."""
        return job if job in self.services else "train"

    def image(self, service: str) -> str | None:
        """The image's name; None where compose makes one up."""
        name = (self.services.get(service) or {}).get("image")
        return str(name) if name else None

    def has_image(self, service: str) -> bool:
        """Whether the image is built; with a name of compose's own it can't be told, and counts as not."""
        return self.built_image(service) is not None

    def built_image(self, service: str) -> str | None:
        """The service's image; None where it is not built."""
        name = self.image(service)
        if name is None:
            return None
        answer = self.machine.call(["docker", "image", "inspect", "--format", "{{.Id}}", name])
        return name if answer.code == 0 else None

    def has_gpus(self, service: str) -> bool:
        """Whether the service reserves GPUs: docker-compose.gpu.yml is in force."""
        resources = ((self.services.get(service) or {}).get("deploy") or {}).get("resources") or {}
        devices = (resources.get("reservations") or {}).get("devices") or []
        return any("gpu" in (device.get("capabilities") or []) for device in devices)


def shell_variables(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """``-e NAME=VALUE`` for each; these are no secrets."""
    return [word for name, value in pairs for word in ("-e", f"{name}={value}")]


def wanted(machine: System, checkout: Path) -> dict[str, str]:
    """The variables as they should be. Compose files that the user added stay, docker-compose.override.yml too,
    which compose reads by itself only as long as COMPOSE_FILE is not set."""
    have = read_dotenv(checkout)
    files = [
        n for n in have.get("COMPOSE_FILE", "").split(os.pathsep) if n and n != GPU_COMPOSE_FILE
    ]
    if COMPOSE_FILE not in files:
        files.insert(0, COMPOSE_FILE)
    if "COMPOSE_FILE" not in have and (checkout / OVERRIDE_COMPOSE_FILE).is_file():
        files.append(OVERRIDE_COMPOSE_FILE)
    if machine.engine_gives_gpus and (checkout / GPU_COMPOSE_FILE).is_file():
        files.insert(files.index(COMPOSE_FILE) + 1, GPU_COMPOSE_FILE)
    return {
        "COMPOSE_FILE": os.pathsep.join(files),
        "HOST_UID": str(os.getuid()),
        "HOST_GID": str(os.getgid()),
    }


def wrong(machine: System, checkout: Path) -> list[str]:
    """The variables that ``.env`` lacks or has otherwise."""
    have = read_dotenv(checkout)
    return [name for name, value in wanted(machine, checkout).items() if have.get(name) != value]


def write_missing(machine: System, checkout: Path) -> list[str]:
    """Add the variables that ``.env`` does not have; what was done, in words. What it has is left to doctor."""
    have = read_dotenv(checkout)
    missing = {name: value for name, value in wanted(machine, checkout).items() if name not in have}
    return _write(checkout, missing)


def write_all(machine: System, checkout: Path) -> list[str]:
    """Set the variables to what this machine needs; what was done, in words."""
    return _write(checkout, wanted(machine, checkout))


def _write(checkout: Path, values: dict[str, str]) -> list[str]:
    if not values or not update_dotenv(checkout, values):
        return []
    return [f"wrote .env: {' '.join(f'{name}={value}' for name, value in values.items())}"]


def run_service(
    cli: CliContext, service: str, words: tuple[str, ...], is_server: bool = False
) -> int:
    """One container of ``service`` with the terminal; its exit status. With ``is_server`` it has the service's ports, and
    ends with Ctrl-C."""
    compose, checkout = _ready(cli)
    flags = ["--service-ports"] * is_server + ["-T"] * (not cli.is_terminal)
    return follow_process(
        cli, compose.command("run", "--rm", *flags, service, *words), checkout, is_server
    )


def _ready(cli: CliContext) -> tuple[Compose, Path]:
    checkout = find_checkout(cli.cwd)
    machine = System(cli.environ)
    if machine.engine.problem:
        raise RunnerError(f"{machine.engine.problem}; `runner doctor` says more")
    for line in write_missing(machine, checkout):
        cli.info(line)
    here = volumes(checkout, {})
    for folder in (here.data, here.checkpoints, here.cache):
        folder.mkdir(parents=True, exist_ok=True)
    return Compose(machine, checkout), checkout


def follow_process(
    cli: CliContext, words: list[str], folder: Path, until_ctrl_c: bool = False
) -> int:
    """Wait for it; its exit status. Ctrl-C is its own: it has it from the terminal too, and with ``until_ctrl_c`` that is
    a good end. SIGTERM is passed on."""
    process: subprocess.Popen[bytes] | None = None
    interrupted = threading.Event()

    def pass_on(number: int, _: object) -> None:
        if process is not None:
            process.send_signal(number)

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: interrupted.set()),
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
    }
    try:
        process = subprocess.Popen(words, cwd=folder, env=dict(cli.environ))
        code = process.wait()
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
    if until_ctrl_c and interrupted.is_set():
        return 0
    return code if code >= 0 else 128 - code
