"""Whether the volumes' folders are there and the user's own, and whether the disk has room."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from job.locations import VOLUMES
from runner.checks.finding import Finding, Scene, Severity

ORDER = 60

GIB = 1024**3
LITTLE, TOO_LITTLE = 10 * GIB, 1 * GIB  # the image alone takes about 6 GiB


def check(scene: Scene) -> Iterator[Finding]:
    """A folder that the engine had to make belongs to root, and nothing can be written to it."""
    for folder in _folders(scene):
        name = folder.relative_to(scene.checkout).as_posix()
        if not folder.is_dir():
            yield Finding("note", f"{name} is not there yet; the first job makes it", "", name)
        elif not os.access(folder, os.W_OK):
            yield Finding(
                "error", f"{name} is not yours to write", f'sudo chown -R "$(id -u):$(id -g)" {name}', name
            )
    free = shutil.disk_usage(scene.checkout).free
    severity: Severity = "error" if free < TOO_LITTLE else "warning" if free < LITTLE else "ok"
    remedy = "" if severity == "ok" else "docker system prune removes images and containers of no use"
    yield Finding(severity, f"{free / GIB:.0f} GiB free on the disk of the checkout", remedy)


def fix(scene: Scene) -> Iterator[str]:
    """Make the folders that are missing."""
    for folder in _folders(scene):
        if not folder.exists():
            folder.mkdir(parents=True)
            yield f"made {folder.relative_to(scene.checkout).as_posix()}"


def _folders(scene: Scene) -> list[Path]:
    return [scene.checkout / "volumes" / name for name in VOLUMES]
