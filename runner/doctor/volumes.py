"""Whether the volumes' folders are there and the user's own, and whether their disks and the checkout's have room."""

import os
from collections.abc import Iterator
from pathlib import Path

from job.disk import free_bytes, nearest_there
from job.format import byte_size
from job.paths import VOLUMES
from runner.doctor.base import CheckContext, Finding, Severity
from runner.project import volumes

ORDER = 60

GB = 1e9

LITTLE, TOO_LITTLE = 10 * GB, 1 * GB  # the image alone takes about 6 GB


def check(scene: CheckContext) -> Iterator[Finding]:
    """A folder that the engine had to make belongs to root, and nothing can be written to it."""
    for folder in _folders(scene):
        name = folder.relative_to(scene.checkout).as_posix()
        if not folder.is_dir():
            yield Finding("note", f"{name} is not there yet; the first job makes it", "", name)
        elif not os.access(folder, os.W_OK):
            yield Finding(
                "error",
                f"{name} is not yours to write",
                f'sudo chown -R "$(id -u):$(id -g)" {name}',
                name,
            )
    free = free_bytes(scene.checkout)
    remedy = "docker system prune removes images and containers of no use"
    yield _room(free, f"{byte_size(free)} free on the disk of the checkout", remedy)
    yield from _other_disks(scene)


def _other_disks(scene: CheckContext) -> Iterator[Finding]:
    """Those of the volumes, where variables such as CHECKPOINTS_PATH or a mount put them elsewhere."""
    seen = {scene.checkout.stat().st_dev}
    for name in VOLUMES:
        path = nearest_there(getattr(volumes(scene.checkout, scene.environ), name))
        disk = path.stat().st_dev
        if disk not in seen:
            seen.add(disk)
            free = free_bytes(path)
            remedy = (
                f"make room in {path}, or let {name.upper()}_PATH name a folder on another disk"
            )
            yield _room(free, f"{byte_size(free)} free on the disk of {name}, {path}", remedy)


def _room(free: int, message: str, remedy: str) -> Finding:
    severity: Severity = "error" if free < TOO_LITTLE else "warning" if free < LITTLE else "ok"
    return Finding(severity, message, "" if severity == "ok" else remedy)


def fix(scene: CheckContext) -> Iterator[str]:
    """Make the folders that are missing."""
    for folder in _folders(scene):
        if not folder.exists():
            folder.mkdir(parents=True)
            yield f"made {folder.relative_to(scene.checkout).as_posix()}"


def _folders(scene: CheckContext) -> list[Path]:
    return [scene.checkout / "volumes" / name for name in VOLUMES]
