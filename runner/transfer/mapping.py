"""Where the two sides of a transfer are, and what both directions share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from runner.console import CliContext
from runner.errors import did_you_mean, not_found
from runner.project import find_checkout, volumes
from runner.targets.modal.account import need_token
from runner.targets.modal.volume import ModalVolumeFiles, modal_name, open_files
from runner.transfer.journal import Journal
from runner.transfer.workers import Workers


@dataclass(frozen=True)
class VolumeMapping:
    """A volume in the cloud and its folder ``root`` on this machine."""

    volume: str
    files: ModalVolumeFiles
    root: Path
    journal: Journal
    lock: Path

    @property
    def has_runs(self) -> bool:
        """Whether its folders are runs."""
        return self.volume == "checkpoints"


def local_folder(cli: CliContext, volume: str) -> Path:
    """The volume's folder on this machine. Raises RunnerError for a name that is no volume's."""
    modal_name(volume, cli.environ)
    folder: Path = getattr(volumes(find_checkout(cli.cwd), cli.environ), volume)
    return folder


def open_mapping(
    cli: CliContext, volume: str, root: Path | None = None, create: bool = False
) -> VolumeMapping:
    """The volume, made where it is missing with ``create``, and ``root`` (by default its folder of the
    checkout). Raises RunnerError."""
    folder = local_folder(cli, volume)
    need_token(cli.environ)
    files = open_files(volume, cli.environ, create)
    notes = volumes(find_checkout(cli.cwd), cli.environ).cache / ".sync"
    root = Path(os.path.abspath(root or folder))
    short = sha256(str(root).encode()).hexdigest()[:12]
    return VolumeMapping(
        volume,
        files,
        root,
        Journal(notes / f"{files.id}.jsonl"),
        notes / f"{files.id}-{short}.lock",
    )


def patient(files: ModalVolumeFiles, workers: Workers) -> ModalVolumeFiles:
    """The same files, whose waiting between two attempts ends when the transfer is cancelled."""
    return ModalVolumeFiles(files.volume, replace(files.patience, sleep=workers.sleep))


@contextmanager
def alone(place: VolumeMapping, say: Callable[[str], None]) -> Iterator[None]:
    """Let no two transfers write into one folder; the second waits. A killed one leaves no lock behind."""
    place.lock.parent.mkdir(parents=True, exist_ok=True)
    with place.lock.open("a") as file:
        _take(file, lambda: say(f"waiting for another transfer into {place.root}"))
        yield


def _take(file: IO[Any], on_wait: Callable[[], None]) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        pass  # a file system without locks


def nothing_there(place: VolumeMapping, path: str) -> Exception:
    """What to raise where the volume has no ``path``."""
    if not path.strip("/"):
        return not_found(
            f"the volume {place.volume} in the cloud is empty; `runner push {place.volume} PATH` fills it"
        )
    parent, _, name = path.strip("/").rpartition("/")
    try:
        known = [
            entry.path.rsplit("/", 1)[-1] for entry in place.files.listing(parent, recursive=False)
        ]
    except FileNotFoundError:
        known = []
    guess = (
        did_you_mean(name, known)
        or f"; `{f'runner ls {place.volume} {parent}'.rstrip()}` lists what is there"
    )
    return not_found(f"the volume {place.volume} in the cloud has no {path}{guess}")
