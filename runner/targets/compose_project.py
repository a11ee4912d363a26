"""The compose file as Compose reads it, the settings in .env, and single services.

For Compose 1.29 and 2.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runner.console import CliContext
from runner.errors import RunnerError
from runner.home import state_folder
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
from runner.targets.docker import check_shared_files, image_id
from runner.targets.process import follow_process

CONFIG_TIMEOUT_S = 60

SETTINGS = ("COMPOSE_FILE", "COMPOSE_PROJECT_NAME", "HOST_UID", "HOST_GID")

GENERATED_NAME = re.compile(r"^[a-z0-9_-]+-[0-9a-f]{8}$")


@dataclass
class ComposeProject:
    """Compose in one checkout, whose ``.env`` selects the files (COMPOSE_FILE)."""

    system: System
    checkout: Path

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of Compose. Raises RunnerError if it is not installed."""
        if self.system.compose is None:
            raise RunnerError(
                "docker is installed and Compose is not; install the plugin docker-compose-plugin, "
                "then check it with `runner doctor`"
            )
        program = self.system.program(self.system.compose[0])
        return [str(program), *self.system.compose[1:], *arguments]

    @cached_property
    def config(self) -> dict[str, Any]:
        """Return the merged compose file. Raises RunnerError if Compose refuses it."""
        # `config` omits a service with a profile unless the profile is named.
        profiles = [word for job in (*JOBS, "shell", "tensorboard") for word in ("--profile", job)]
        answer = self.system.call(
            self.command(*profiles, "config"), cwd=self.checkout, timeout_s=CONFIG_TIMEOUT_S
        )
        if answer.code:
            raise RunnerError(
                f"Compose can't read its files: {answer.last_line}; run `runner doctor` for details"
            )
        import yaml

        return yaml.safe_load(answer.out) or {}

    @property
    def services(self) -> dict[str, Any]:
        """Return the settings of each service."""
        return self.config.get("services") or {}

    def service_of(self, job: str) -> str:
        """Return the service of a job; ``train`` runs the jobs without their own."""
        return job if job in self.services else "train"

    def image(self, service: str) -> str | None:
        """Return the name of the image; None if Compose generates one."""
        name = (self.services.get(service) or {}).get("image")
        return str(name) if name else None

    def has_image(self, name: str | None) -> bool:
        """Return True if the image is built.

        False for a generated name (None), which can't be looked up.
        """
        return name is not None and bool(image_id(self.system, name))

    def built_image(self, service: str) -> str | None:
        """Return the name of a service's image if it is built."""
        name = self.image(service)
        return name if self.has_image(name) else None

    def has_gpus(self, service: str) -> bool:
        """Return True if the service reserves GPUs, as docker-compose.gpu.yml makes it."""
        resources = ((self.services.get(service) or {}).get("deploy") or {}).get("resources") or {}
        devices = (resources.get("reservations") or {}).get("devices") or []
        return any("gpu" in (device.get("capabilities") or []) for device in devices)


def compose_system(cli: CliContext, checkout: Path) -> System:
    """Return the programs for Compose in ``checkout``, whose compose file reads PWD."""
    return System({**cli.environ, "PWD": str(checkout)})


def needed_settings(system: System, checkout: Path) -> dict[str, str]:
    """Return the settings that ``.env`` should have on this machine.

    Compose files of the user stay, also docker-compose.override.yml, which Compose reads on its own
    only while COMPOSE_FILE is not set.
    """
    present = read_dotenv(checkout, SETTINGS)
    names = present.get("COMPOSE_FILE", "").split(os.pathsep)
    files = [name for name in names if name and name != GPU_COMPOSE_FILE]
    if COMPOSE_FILE not in files:
        files.insert(0, COMPOSE_FILE)
    if "COMPOSE_FILE" not in present and (checkout / OVERRIDE_COMPOSE_FILE).is_file():
        files.append(OVERRIDE_COMPOSE_FILE)
    if system.engine_gives_gpus and (checkout / GPU_COMPOSE_FILE).is_file():
        files.insert(files.index(COMPOSE_FILE) + 1, GPU_COMPOSE_FILE)
    return {
        "COMPOSE_FILE": os.pathsep.join(files),
        "COMPOSE_PROJECT_NAME": project_name(
            state_folder(checkout), present.get("COMPOSE_PROJECT_NAME", "")
        ),
        "HOST_UID": str(os.getuid()),
        "HOST_GID": str(os.getgid()),
    }


def project_name(checkout: Path, current: str = "") -> str:
    """Return the checkout's own project name, or ``current`` if the user chose it.

    Compose's default is the folder's name, so that two checkouts of one name would replace each
    other's containers. A name that a copied ``.env`` brought from another folder is not the user's.
    """
    if current and not GENERATED_NAME.match(current):
        return current
    stem = re.sub(r"[^a-z0-9_-]+", "-", checkout.name.lower()).strip("-_") or "checkout"
    return f"{stem}-{hashlib.sha256(os.fsencode(checkout)).hexdigest()[:8]}"


def wrong_settings(system: System, checkout: Path) -> list[str]:
    """Return the names of the settings that ``.env`` lacks or has with a different value."""
    present = read_dotenv(checkout, SETTINGS)
    needed = needed_settings(system, checkout)
    return [name for name, value in needed.items() if present.get(name) != value]


def write_settings(system: System, checkout: Path, only_missing: bool = False) -> list[str]:
    """Set the settings in ``.env`` and report them.

    ``only_missing`` leaves wrong ones to `runner doctor`.
    """
    present = read_dotenv(checkout, SETTINGS) if only_missing else {}
    needed = needed_settings(system, checkout)
    values = {name: value for name, value in needed.items() if name not in present}
    if not values or not update_dotenv(checkout, values):
        return []
    return [f"wrote .env: {' '.join(f'{name}={value}' for name, value in values.items())}"]


def run_service(
    cli: CliContext,
    service: str,
    argv: tuple[str, ...],
    is_server: bool = False,
    flags: tuple[str, ...] = (),
) -> int:
    """Run a container of ``service`` on the terminal and return its exit status.

    ``is_server`` publishes the service's ports and makes Ctrl-C a success.
    """
    checkout = find_checkout(cli.cwd)
    system = compose_system(cli, checkout)
    if system.engine.problem:
        raise RunnerError(f"{system.engine.problem}; run `runner doctor` for details")
    for line in write_settings(system, checkout, only_missing=True):
        cli.info(line)
    folders = volumes(checkout, {})
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    project = ComposeProject(system, checkout)
    if image := project.built_image(project.service_of(service)):
        check_shared_files(system, image, (checkout / COMPOSE_FILE, folders.checkpoints))
    options = [*flags, *["--service-ports"] * is_server, *["-T"] * (not cli.is_terminal)]
    command = project.command("run", "--rm", *options, service, *argv)
    return follow_process(cli.environ, command, checkout, is_server)
