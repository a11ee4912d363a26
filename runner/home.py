"""The project of a runner that was installed from a wheel: its home in the user's data folder.

    ~/.local/share/gpt-runner/          or GPT_RUNNER_HOME
        0.1.0-1a2b3c4d/                 code, recipes, Dockerfile, Compose files: one per version
        volumes/  .env                  shared by all versions

A running job keeps the code that it started with, because a new version gets a folder of its own.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

HOME_VARIABLE = "GPT_RUNNER_HOME"
SITE = Path(__file__).resolve().parent.parent
FILES = Path(__file__).resolve().parent / "project_files"  # in a wheel only: pyproject.toml
PACKAGES = ("bench", "corpus", "experiment", "inference", "job", "model", "runner", "serving")
MARKER = ".installed"  # distinguishes a copy from a checkout
REBUILDS = ("Dockerfile", "requirements.lock")


def home_folder(environ: Mapping[str, str]) -> Path:
    """Return GPT_RUNNER_HOME, else the runner's folder in the user's data folder (XDG)."""
    if folder := environ.get(HOME_VARIABLE):
        return Path(folder).expanduser().absolute()
    data = environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser().absolute() / "gpt-runner"


def queue_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of the queue for the GPUs of this machine; a home can be on several."""
    return home_folder(environ) / "queue" / socket.gethostname()


def installed_project(environ: Mapping[str, str], info: Callable[[str], None]) -> Path | None:
    """Return the copy of this version's project, created at the first use.

    None if the runner was not installed from a wheel.
    """
    if not FILES.is_dir():
        return None
    home = home_folder(environ)
    project = home / version_name()
    if not project.is_dir():
        before = max(copies(home), key=lambda path: path.stat().st_mtime, default=None)
        make_copy(project)
        info(f"project folder: {project}; runs are in {home / 'volumes'}")
        if before is not None:
            info(f"upgraded from {before.name}; runs are kept. {describe_changes(before, project)}")
    return project


def version_name() -> str:
    """Return the version and a digest of the installed files, such as ``0.1.0-1a2b3c4d``."""
    try:
        own = distribution("gpt-runner")
    except PackageNotFoundError:
        return "unknown"
    record = own.read_text("RECORD") or ""
    return f"{own.version}-{hashlib.sha256(record.encode()).hexdigest()[:8]}"


def copies(home: Path) -> list[Path]:
    """Return the copies of all versions."""
    return [path.parent for path in home.glob(f"*/{MARKER}")]


def make_copy(project: Path) -> None:
    """Copy the installed files to ``project``; it appears with all its files or not at all."""
    temporary = project.with_name(f".{project.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(FILES, temporary)
        for package in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__", FILES.name)
            shutil.copytree(SITE / package, temporary / package, ignore=ignored)
        for shared in ("volumes", ".env"):  # Compose looks for them in the project's folder
            (temporary / shared).symlink_to(Path("..", shared))
        (temporary / MARKER).write_text(f"{project.name}\n", encoding="utf-8")
        for volume in ("data", "checkpoints", "cache"):
            (project.parent / "volumes" / volume).mkdir(parents=True, exist_ok=True)
        try:
            temporary.rename(project)
        except OSError:  # another process created it meanwhile
            if not project.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def describe_changes(before: Path, after: Path) -> str:
    """Return a sentence about the files that differ between two copies."""
    old, new = _files(before), _files(after)
    changed = {
        name
        for name in old | new
        if name not in old & new or not filecmp.cmp(before / name, after / name, shallow=False)
    }
    recipes = sorted(name for name in changed if name.startswith("configs/"))
    parts = [f"{len(changed)} file{'s' * (len(changed) != 1)} changed"]
    if recipes:
        parts.append(f"recipes: {', '.join(recipes)}")
    if rebuilds := [name for name in REBUILDS if name in changed]:
        parts.append(f"the image will be rebuilt: {', '.join(rebuilds)}")
    return "; ".join(parts)


def _files(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    return {path.relative_to(folder).as_posix() for path in paths}
