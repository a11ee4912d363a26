"""The checkout that the runner acts on: where it is, its recipes, its volumes and its commit."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from job.locations import Locations
from runner.errors import RunnerError

COMPOSE_FILE = "docker-compose.yml"
GPU_COMPOSE_FILE = "docker-compose.gpu.yml"
OUR_CODE = "job/locations.py"
OVERRIDE_COMPOSE_FILE = "docker-compose.override.yml"
INSTALLED = Path(__file__).resolve().parent.parent


def find_checkout(cwd: Path) -> Path:
    """The nearest folder at or above ``cwd`` that is a checkout, else the one the runner was installed from.

    Raises RunnerError where there is neither.
    """
    cwd = cwd.resolve()
    for folder in (cwd, *cwd.parents, INSTALLED):
        if is_checkout(folder):
            return folder
    raise RunnerError(
        f"{cwd} is in no checkout of the project ({COMPOSE_FILE} and {OUR_CODE} mark one); "
        "`cd` into yours and type the same again"
    )


def is_checkout(folder: Path) -> bool:
    """Whether the folder holds the compose file and the code that runs inside: a model/ have others too."""
    return (folder / COMPOSE_FILE).is_file() and (folder / OUR_CODE).is_file()


def recipes(checkout: Path) -> dict[str, Path]:
    """The recipes of ``configs/`` by name."""
    folder = checkout / "configs"
    found = [*folder.glob("*.yaml"), *folder.glob("*.yml")] if folder.is_dir() else []
    return {path.stem: path for path in sorted(found) if is_recipe(path)}


def is_recipe(path: Path) -> bool:
    """Whether the file is neither a pipeline nor a sweep, which lie beside the recipes."""
    return not (is_pipeline(path) or is_sweep(path))


def is_pipeline(path: Path) -> bool:
    """Whether the file is a pipeline: it has stages."""
    return _has_key(path, "stages")


def is_sweep(path: Path) -> bool:
    """Whether the file is a sweep: it has a space."""
    return _has_key(path, "space")


def _has_key(path: Path, key: str) -> bool:
    try:
        return any(line.startswith(f"{key}:") for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return False


def volumes(checkout: Path, environ: Mapping[str, str]) -> Locations:
    """The three volumes on this machine: the variables if set, else the checkout's ``volumes/``."""
    default = Locations.under(checkout / "volumes")
    return Locations(
        data=Path(environ.get("DATA_PATH") or default.data).absolute(),
        checkpoints=Path(environ.get("CHECKPOINTS_PATH") or default.checkpoints).absolute(),
        cache=Path(environ.get("CACHE_PATH") or default.cache).absolute(),
    )


def git_state(checkout: Path) -> dict[str, object] | None:
    """``{"commit": ..., "dirty": ...}``; None without git or outside a repository.

    Dirty means that a tracked file was changed: what git does not know is mostly the user's notes.
    """
    commit = _git(checkout, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changed)}


def _git(checkout: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=checkout, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
