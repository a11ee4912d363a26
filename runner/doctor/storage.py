"""Check the volumes on this machine: folders, disks, and leftovers of interrupted jobs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from job.files import free_bytes, nearest_existing, write_atomically
from job.format import byte_size, count
from job.paths import VOLUMES
from job.run_record import heartbeat_age, is_held
from job.step_folders import LATEST, MANIFEST, PARTIAL, TEMPORARY_FILE
from runner.doctor import CheckContext, Finding, Severity, failure, note, ok, warning
from runner.runs.store import is_active_locally, is_fresh
from runner.transfer.mapping import BLOCKS, PART
from runner.transfer.plan import REPLACED, find_incomplete

# The image alone takes about 6 GB.
LOW_DISK_BYTES, FULL_DISK_BYTES = 10e9, 1e9

# Without a lock that says otherwise, a younger file may still be in use.
MIN_AGE_S = 3600.0

TEMPORARY_FOLDERS = (PARTIAL, REPLACED)


def check_volumes(context: CheckContext) -> Iterator[Finding]:
    """Check the volumes' folders and the free disk space."""
    for folder in _default_folders(context):
        name = folder.relative_to(context.checkout).as_posix()
        if not folder.is_dir():
            yield note(f"{name} does not exist yet; the first job creates it", "", name)
        elif not os.access(folder, os.W_OK):  # Docker creates missing folders as root
            yield failure(
                f"no permission to write to {name}",
                f'sudo chown -R "$(id -u):$(id -g)" {name}',
                name,
            )
    free = free_bytes(context.checkout)
    remedy = "remove unused images and containers: `docker system prune`"
    yield disk_finding(free, f"{byte_size(free)} free on the disk of the checkout", remedy)
    checked = {context.checkout.stat().st_dev}
    for name, volume in zip(VOLUMES, context.volumes, strict=True):
        path = nearest_existing(volume)  # CHECKPOINTS_PATH or a mount may be on another disk
        if (disk := path.stat().st_dev) in checked:
            continue
        checked.add(disk)
        free = free_bytes(path)
        message = f"{byte_size(free)} free on the disk of {name}, {path}"
        variable = f"{name.upper()}_PATH"
        remedy = f"free space in {path}, or set {variable} to a folder on a different disk"
        yield disk_finding(free, message, remedy)


def disk_finding(free: int, message: str, remedy: str) -> Finding:
    """Return the finding about a disk with ``free`` bytes."""
    if free >= LOW_DISK_BYTES:
        return ok(message)
    severity = Severity.ERROR if free < FULL_DISK_BYTES else Severity.WARNING
    return Finding(severity, message, remedy)


def fix_volumes(context: CheckContext) -> Iterator[str]:
    """Create missing folders."""
    for folder in _default_folders(context):
        if not folder.exists():
            folder.mkdir(parents=True)
            yield f"created {folder.relative_to(context.checkout).as_posix()}"


def _default_folders(context: CheckContext) -> list[Path]:
    return [context.checkout / "volumes" / name for name in VOLUMES]


def check_leftovers(context: CheckContext) -> Iterator[Finding]:
    """Report leftovers. Partial files of transfers are kept: the next transfer resumes them."""
    for path in _temporary_files(context):
        yield warning(
            f"{_name(context, path)} is left over from an interrupted job",
            "runner doctor --fix deletes it",
        )
    for volume, root in zip(VOLUMES, context.volumes, strict=True):
        parts = [path for path in sorted(root.rglob(f".*{PART}")) if _age(path) > MIN_AGE_S]
        if parts:
            size = byte_size(sum(path.stat().st_size for path in parts))
            yield note(
                f"{volume}: {count(len(parts), 'interrupted transfer')} ({size}), "
                f"such as {_name(context, parts[0])}",
                f"resume it: `runner pull {volume}`; or delete it and its {BLOCKS}",
            )
    for run in _runs(context):
        name = run.folder.name
        for step in run.damaged:
            yield warning(
                f"{_name(context, run.folder / step)} is damaged: a file is missing or has "
                "a different size",
                f"resume from the checkpoint before it: `runner resume {name}`; or download it "
                f"again: `runner pull checkpoints {name}`",
            )
        if run.is_latest_wrong:
            problem = "is missing"
            if run.latest:
                problem = f"names {run.latest}, which is missing or damaged"
            remedy = (
                f"no intact checkpoint is on this machine; try `runner pull checkpoints {name}`"
            )
            if run.newest:
                remedy = f"runner doctor --fix makes it name {run.newest}"
            yield failure(f"{_name(context, run.folder / LATEST)} {problem}", remedy)


def fix_leftovers(context: CheckContext) -> Iterator[str]:
    """Delete temporary files, and make ``latest`` name the newest complete checkpoint."""
    for path in _temporary_files(context):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield f"deleted {_name(context, path)}"
    for run in _runs(context):
        if run.is_latest_wrong and run.newest:
            write_atomically(run.folder / LATEST, f"{run.newest}\n")
            yield f"{_name(context, run.folder / LATEST)} names {run.newest}"


@dataclass(frozen=True)
class _Run:
    """The names of a run's checkpoints; ``latest`` is the content of the file, '' without one."""

    folder: Path
    damaged: list[str]
    newest: str  # complete one; '' without one
    latest: str
    is_latest_wrong: bool


def _runs(context: CheckContext) -> Iterator[_Run]:
    """Yield the runs that are not active and have checkpoints; a pull may bring records alone."""
    for folder in sorted(context.volumes.checkpoints.glob("*")):
        if not folder.is_dir() or is_active_locally(folder):
            continue
        steps = sorted(path for path in folder.glob("step_*") if path.is_dir())
        complete = [step.name for step in steps if _is_complete(step)]
        try:
            latest = (folder / LATEST).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            latest = ""
        if steps:
            yield _Run(
                folder,
                damaged=[step.name for step in steps if step.name not in complete],
                newest=complete[-1] if complete else "",
                latest=latest,
                is_latest_wrong=latest not in complete if latest else bool(complete),
            )


def _temporary_files(context: CheckContext) -> list[Path]:
    files: list[Path] = []
    for root in context.volumes:
        for path in sorted(root.rglob(".*")):
            *parents, name = path.relative_to(root).parts
            is_inside = any(parent.startswith(TEMPORARY_FOLDERS) for parent in parents)
            is_temporary = name.startswith(TEMPORARY_FOLDERS) or TEMPORARY_FILE.match(name)
            run = root / (parents[0] if parents else name)
            if is_temporary and not is_inside and _is_abandoned(path, run):
                files.append(path)
    return files


def _is_abandoned(path: Path, run: Path) -> bool:
    """Return True if no process uses a temporary file.

    A trainer's partial checkpoint is abandoned as soon as the run's lock is free. A transfer
    holds no lock, but its files are newer than the run's last heartbeat on this machine.
    """
    name = path.name
    if name.startswith(REPLACED) and not path.with_name(name.removeprefix(REPLACED)).exists():
        return False  # the next pull replaces it; until then it is the only copy
    heartbeat, held = heartbeat_age(run), is_held(run)
    is_of_trainer = (
        name.startswith(PARTIAL) and heartbeat is not None and _age(path) > heartbeat - 60
    )
    if is_of_trainer and held is not None:
        return not held
    return _age(path) > MIN_AGE_S and not is_fresh(heartbeat)


def _is_complete(step: Path) -> bool:
    """Compare sizes only: hashing all checkpoints takes minutes, and resuming does it anyway."""
    try:
        sizes = {path.name: path.stat().st_size for path in step.iterdir()}
        return find_incomplete((step / MANIFEST).read_bytes(), sizes) is None
    except OSError:
        return False


def _age(path: Path) -> float:
    """Return the seconds since the newest change; 0 for a file that a process just removed."""
    try:
        inside = path.rglob("*") if path.is_dir() else ()
        return time.time() - max(each.lstat().st_mtime for each in (path, *inside))
    except FileNotFoundError:
        return 0.0


def _name(context: CheckContext, path: Path) -> str:
    checkout = context.checkout
    relative = path.relative_to(checkout) if path.is_relative_to(checkout) else path
    return relative.as_posix()
