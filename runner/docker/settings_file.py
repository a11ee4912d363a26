"""What ``.env`` must say for compose on this machine: which files, and whose the files in volumes/ are."""

from __future__ import annotations

import os
from pathlib import Path

from runner.checkout import COMPOSE_FILE, GPU_COMPOSE_FILE, OVERRIDE_COMPOSE_FILE
from runner.dotenv import read_dotenv, update_dotenv
from runner.machine import Machine


def wanted(machine: Machine, checkout: Path) -> dict[str, str]:
    """The variables as they should be. Compose files that the user added stay, docker-compose.override.yml too,
    which compose reads by itself only as long as COMPOSE_FILE is not set."""
    have = read_dotenv(checkout)
    files = [n for n in have.get("COMPOSE_FILE", "").split(os.pathsep) if n and n != GPU_COMPOSE_FILE]
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


def wrong(machine: Machine, checkout: Path) -> list[str]:
    """The variables that ``.env`` lacks or has otherwise."""
    have = read_dotenv(checkout)
    return [name for name, value in wanted(machine, checkout).items() if have.get(name) != value]


def write_missing(machine: Machine, checkout: Path) -> list[str]:
    """Add the variables that ``.env`` does not have; what was done, in words. What it has is left to doctor."""
    have = read_dotenv(checkout)
    missing = {name: value for name, value in wanted(machine, checkout).items() if name not in have}
    return _write(checkout, missing)


def write_all(machine: Machine, checkout: Path) -> list[str]:
    """Set the variables to what this machine needs; what was done, in words."""
    return _write(checkout, wanted(machine, checkout))


def _write(checkout: Path, values: dict[str, str]) -> list[str]:
    if not values or not update_dotenv(checkout, values):
        return []
    return [f"wrote .env: {' '.join(f'{name}={value}' for name, value in values.items())}"]
