"""Check for leftovers of interrupted jobs: temporary files, damaged checkpoints, ``latest``."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from job.files import write_atomically
from job.format import byte_size
from job.paths import VOLUMES
from job.run_record import heartbeat_age, is_held
from job.step_folders import LATEST, MANIFEST, PARTIAL, TEMPORARY_FILE
from runner.doctor import CheckContext, Finding, failure, note, warning
from runner.project import volumes
from runner.runs.store import is_active_locally, is_fresh
from runner.transfer.mapping import BLOCKS, PART
from runner.transfer.plan import REPLACED, find_incomplete, parse_manifest

# Without a lock that says otherwise, a younger file may still be in use.
MIN_AGE_S = 3600.0

TEMPORARY_FOLDERS = (PARTIAL, REPLACED)


def check_leftovers(context: CheckContext) -> Iterator[Finding]:
    """Report leftovers. Partial files of transfers are kept: the next transfer resumes them."""
    for path in _temporary_files(context):
        yield warning(
            f"{_name(context, path)} is left over from an interrupted job",
            "runner doctor --fix deletes it",
        )
    for volume in VOLUMES:
        root: Path = getattr(volumes(context.checkout, context.environ), volume)
        parts = [path for path in _find(root, f".*{PART}") if _age(path) > MIN_AGE_S]
        if parts:
            size = byte_size(sum(path.stat().st_size for path in parts))
            yield note(
                f"{volume}: {len(parts)} interrupted transfer{'s' * (len(parts) > 1)} ({size}), "
                f"such as {_name(context, parts[0])}",
                f"resume it: `runner pull {volume}`; or delete it and its {BLOCKS}",
            )
    for run in _runs(context):
        yield from _check_run(context, run)


def _check_run(context: CheckContext, run: _Run) -> Iterator[Finding]:
    name = run.folder.name
    for step in run.steps:
        if not _is_complete(run.folder / step):
            yield warning(
                f"{_name(context, run.folder / step)} is damaged: a file is missing or has "
                "a different size",
                f"resume from the checkpoint before it: `runner resume {name}`; or download it "
                f"again: `runner pull checkpoints {name}`",
            )
    if run.is_latest_wrong:
        problem = f"names {run.latest}, which is missing or damaged" if run.latest else "is missing"
        remedy = (
            f"runner doctor --fix makes it name {run.newest}"
            if run.newest
            else f"no intact checkpoint is on this machine; try `runner pull checkpoints {name}`"
        )
        message = f"{_name(context, run.folder / LATEST)} {problem}"
        yield failure(message, remedy)


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
    folder: Path
    steps: list[str]  # oldest first
    latest: str  # content of the file; '' if it is missing

    @property
    def newest(self) -> str:
        """Return the newest complete checkpoint; '' without one."""
        steps = reversed(self.steps)
        return next((step for step in steps if _is_complete(self.folder / step)), "")

    @property
    def is_latest_wrong(self) -> bool:
        if not self.latest:
            return bool(self.newest)
        return self.latest not in self.steps or not _is_complete(self.folder / self.latest)


def _runs(context: CheckContext) -> Iterator[_Run]:
    """Yield the runs that are not active and have checkpoints; a pull may bring records alone."""
    root = volumes(context.checkout, context.environ).checkpoints
    for folder in sorted(root.glob("*")) if root.is_dir() else []:
        if not folder.is_dir() or is_active_locally(folder):
            continue
        steps = sorted(path.name for path in folder.glob("step_*") if path.is_dir())
        try:
            latest = (folder / LATEST).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            latest = ""
        if steps:
            yield _Run(folder, steps, latest)


def _temporary_files(context: CheckContext) -> list[Path]:
    found: list[Path] = []
    for volume in VOLUMES:
        root: Path = getattr(volumes(context.checkout, context.environ), volume)
        for path in _find(root, ".*"):
            *parents, name = path.relative_to(root).parts
            is_inside = any(parent.startswith(TEMPORARY_FOLDERS) for parent in parents)
            is_temporary = name.startswith(TEMPORARY_FOLDERS) or TEMPORARY_FILE.match(name)
            run = root / (parents[0] if parents else name)
            if is_temporary and not is_inside and _is_abandoned(path, run):
                found.append(path)
    return found


def _is_abandoned(path: Path, run: Path) -> bool:
    """Return True if no process uses a temporary file.

    A trainer's partial checkpoint is abandoned as soon as the run's lock is free. A transfer's
    holds no lock, but is younger than the run's last heartbeat on this machine.
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


def _find(root: Path, pattern: str) -> list[Path]:
    return sorted(root.rglob(pattern)) if root.is_dir() else []


def _is_complete(step: Path) -> bool:
    """Compare sizes only: hashing all checkpoints takes minutes, and resuming does it anyway."""
    try:
        manifest = parse_manifest((step / MANIFEST).read_bytes())
        sizes = {path.name: path.stat().st_size for path in step.iterdir()}
    except OSError:
        return False
    return manifest is not None and find_incomplete(manifest, sizes) is None


def _age(path: Path) -> float:
    inside = path.rglob("*") if path.is_dir() else ()
    return time.time() - max(p.lstat().st_mtime for p in (path, *inside))


def _name(context: CheckContext, path: Path) -> str:
    checkout = context.checkout
    relative = path.relative_to(checkout) if path.is_relative_to(checkout) else path
    return relative.as_posix()
