"""What ended amid its work has left: parts of transfers, checkpoints that are not whole, a `latest` that lies."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from job.files import write_atomically
from job.format import byte_size
from job.paths import VOLUMES
from job.run_record import heartbeat_age, is_held
from job.step_folders import LATEST, MANIFEST, PARTIAL
from runner.doctor.base import CheckContext, Finding
from runner.project import volumes
from runner.runs.store import is_fresh
from runner.transfer.checkpoints import find_incomplete, parse_manifest
from runner.transfer.mapping import BLOCKS, PART

ORDER = 77

# Seconds. What was touched since may still be in the making, where no lock tells.
IN_THE_MAKING = 3600.0


def check(scene: CheckContext) -> Iterator[Finding]:
    """Parts of a transfer save a second download, so they are named and left; --fix takes the rest away."""
    for path in _temporary(scene):
        yield Finding(
            "warning",
            f"{_name(scene, path)} was not written to its end",
            "runner doctor --fix deletes it",
        )
    for volume in VOLUMES:
        root: Path = getattr(volumes(scene.checkout, scene.environ), volume)
        parts = [path for path in _hidden(root, f".*{PART}") if _age(path) > IN_THE_MAKING]
        if parts:
            size = sum(path.stat().st_size for path in parts)
            yield Finding(
                "note",
                f"{volume}: {len(parts)} interrupted transfer{'s' * (len(parts) > 1)} ({byte_size(size)}), "
                f"such as {_name(scene, parts[0])}",
                f"runner pull {volume} goes on with it; or delete it, and its {BLOCKS}",
            )
    for run in _runs(scene):
        damaged = [step for step in run.steps if not _is_whole(run.folder / step)]
        for step in damaged:
            yield Finding(
                "warning",
                f"{_name(scene, run.folder / step)} is damaged: a file is missing or has another size",
                f"runner resume {run.folder.name} goes on from the one before; or bring it back: "
                f"runner pull checkpoints {run.folder.name}",
            )
        if run.is_wrong:
            yield Finding(
                "error",
                f"{_name(scene, run.folder / LATEST)} "
                + (
                    f"names {run.latest}, which is not there or damaged"
                    if run.latest
                    else "is missing"
                ),
                f"runner doctor --fix lets it name {run.best}"
                if run.best
                else "no whole checkpoint is here",
            )


def fix(scene: CheckContext) -> Iterator[str]:
    """Delete what nobody goes on with, and let `latest` name the newest whole checkpoint."""
    for path in _temporary(scene):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield f"deleted {_name(scene, path)}"
    for run in _runs(scene):
        if run.is_wrong and run.best:
            write_atomically(run.folder / LATEST, f"{run.best}\n")
            yield f"{_name(scene, run.folder / LATEST)} names {run.best}"


@dataclass(frozen=True)
class _Run:
    folder: Path
    steps: list[str]  # oldest first
    latest: str  # what the file says; empty where there is none

    @property
    def best(self) -> str:
        """The newest whole checkpoint; empty where there is none."""
        return next((step for step in reversed(self.steps) if _is_whole(self.folder / step)), "")

    @property
    def is_wrong(self) -> bool:
        if not self.latest:
            return bool(self.best)
        return self.latest not in self.steps or not _is_whole(self.folder / self.latest)


def _runs(scene: CheckContext) -> Iterator[_Run]:
    root = volumes(scene.checkout, scene.environ).checkpoints
    for folder in sorted(root.glob("*")) if root.is_dir() else []:
        if not folder.is_dir() or is_fresh(heartbeat_age(folder)):
            continue
        steps = sorted(path.name for path in folder.glob("step_*") if path.is_dir())
        try:
            latest = (folder / LATEST).read_text().strip()
        except OSError:
            latest = ""
        if steps:  # a run that was pulled without checkpoints has none to name
            yield _Run(folder, steps, latest)


def _temporary(scene: CheckContext) -> list[Path]:
    found = []
    root = volumes(scene.checkout, scene.environ).checkpoints
    for path in [*_hidden(root, f"{PARTIAL}*"), *_hidden(root, ".*.tmp")]:
        is_inside = any(parent.name.startswith(PARTIAL) for parent in path.parents)
        if not is_inside and _is_left(path, root / path.relative_to(root).parts[0]):
            found.append(path)
    return found


def _is_left(path: Path, run: Path) -> bool:
    """A checkpoint that a training writes is nobody's as soon as the run's lock is free. A transfer's holds no lock, and is
    told by being younger than the last heartbeat here."""
    beat, held = heartbeat_age(run), is_held(run)
    if (
        path.name.startswith(PARTIAL)
        and beat is not None
        and held is not None
        and _age(path) > beat - 60
    ):
        return not held
    return _age(path) > IN_THE_MAKING and not is_fresh(beat)


def _hidden(root: Path, pattern: str) -> list[Path]:
    return sorted(root.rglob(pattern)) if root.is_dir() else []


def _is_whole(step: Path) -> bool:
    """By sizes alone: SHA-256 of all checkpoints would take minutes, and a resume looks at it anyway."""
    try:
        manifest = parse_manifest((step / MANIFEST).read_bytes())
        sizes = {path.name: path.stat().st_size for path in step.iterdir()}
    except OSError:
        return False
    return manifest is not None and find_incomplete(manifest, sizes) is None


def _age(path: Path) -> float:
    inside = path.rglob("*") if path.is_dir() else ()
    return time.time() - max(p.lstat().st_mtime for p in (path, *inside))


def _name(scene: CheckContext, path: Path) -> str:
    return (
        path.relative_to(scene.checkout).as_posix()
        if path.is_relative_to(scene.checkout)
        else path.as_posix()
    )
