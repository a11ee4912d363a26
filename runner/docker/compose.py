"""The compose file as compose itself reads it, and how it is called. Works with 1.29 and with 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runner.errors import RunnerError
from runner.jobs import JOBS
from runner.machine import Machine


@dataclass
class Compose:
    """Compose in one checkout. ``.env`` there chooses the files (COMPOSE_FILE)."""

    machine: Machine
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
        answer = self.machine.call(self.command(*profiles, "config"), cwd=self.checkout, patience=60)
        if answer.code:
            raise RunnerError(f"compose can't read its files: {answer.last_line}; `runner doctor` says more")
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
