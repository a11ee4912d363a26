"""A volume on Modal, its folder on this machine, and which names may become files there."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from runner.console import CliContext
from runner.errors import RunnerError, did_you_mean, not_found
from runner.project import find_checkout, volumes
from runner.targets.modal.account import need_token
from runner.targets.modal.runs import is_active
from runner.targets.modal.target import open_target
from runner.targets.modal.volume import ModalVolumeFiles, RemoteEntry, modal_name, open_files
from runner.transfer.journal import Journal
from runner.transfer.workers import Workers

STATE_FOLDER = ".sync"  # in the cache volume: journals and locks
PART, BLOCKS = ".part", ".part.blocks"
MAX_NAME_BYTES = 230  # file systems allow 255; the rest is for the temporary name

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
DRIVE = re.compile(r"^[A-Za-z]:")
# Unfinished files of a transfer, of the trainer (job/files.py, model/checkpoint.py), and files that
# belong to this machine: .gitkeep keeps the empty folders of volumes/ in git.
TEMPORARY = re.compile(
    r"^\..*\.(part|part\.blocks|tmp)$|^\.(partial|replaced)_|^\.gitkeep$|^\.sync$"
)


class UnsafePath(OSError):
    """A name that leads out of the folder, or cannot be a file there; the message says why."""


@dataclass(frozen=True)
class VolumeMapping:
    """A volume on Modal and its folder ``root`` on this machine."""

    volume: str
    files: ModalVolumeFiles
    root: Path
    journal: Journal
    lock: Path

    @property
    def has_runs(self) -> bool:
        """Return whether the folders of the volume are runs."""
        return self.volume == "checkpoints"


def local_folder(cli: CliContext, volume: str) -> Path:
    """Return the volume's folder on this machine. Raises RunnerError for an unknown volume."""
    modal_name(volume, cli.environ)
    folder: Path = getattr(volumes(find_checkout(cli.cwd), cli.environ), volume)
    return folder


def open_mapping(
    cli: CliContext, volume: str, root: Path | None = None, create: bool = False
) -> VolumeMapping:
    """Open a volume and map it to ``root``, by default to its folder in the checkout.

    ``create`` creates the volume if it does not exist. Raises RunnerError.
    """
    folder = local_folder(cli, volume)
    need_token(cli.environ)
    files = open_files(volume, cli.environ, create)
    state = volumes(find_checkout(cli.cwd), cli.environ).cache / STATE_FOLDER
    root = Path(os.path.abspath(root or folder))
    root_id = sha256(os.fsencode(root)).hexdigest()[:12]
    return VolumeMapping(
        volume,
        files,
        root,
        Journal(state / f"{files.id}.jsonl"),
        state / f"{files.id}-{root_id}.lock",
    )


def with_cancellable_retries(files: ModalVolumeFiles, workers: Workers) -> ModalVolumeFiles:
    """Return the same files; a wait between two attempts ends when ``workers`` are cancelled."""
    return ModalVolumeFiles(files.volume, replace(files.retry, sleep=workers.sleep))


@contextmanager
def exclusive(mapping: VolumeMapping, info: Callable[[str], None]) -> Iterator[None]:
    """Wait for other transfers into the folder. A process that is killed leaves no lock behind."""
    try:
        mapping.lock.parent.mkdir(parents=True, exist_ok=True)
        file = mapping.lock.open("a")
    except OSError as error:
        raise RunnerError(
            f"cannot write {mapping.lock.parent}: {error.strerror}; the cache volume holds the "
            "journal of transfers, so it must be writable"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            info(f"waiting for another transfer into {mapping.root}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield


def is_active_on_modal(
    cli: CliContext, mapping: VolumeMapping, run: str, heartbeat: RemoteEntry | None
) -> bool:
    """Return whether the run's function call is alive, or its heartbeat is fresh."""
    state = open_target(cli, find_checkout(cli.cwd)).state(run)
    if state is not None and state.alive:
        return True
    return is_active(mapping.files, run, heartbeat.modified if heartbeat is not None else None)


def remote_not_found(mapping: VolumeMapping, path: str) -> RunnerError:
    """Return the error for a ``path`` that the volume does not have."""
    volume = mapping.volume
    if not path.strip("/"):
        return not_found(f"volume {volume} on Modal is empty; fill it: `runner push {volume} PATH`")
    parent, _, name = path.strip("/").rpartition("/")
    try:
        entries = mapping.files.listing(parent, recursive=False)
        known = [entry.path.rsplit("/", 1)[-1] for entry in entries]
    except FileNotFoundError:
        known = []
    listing = f"; `{f'runner ls {volume} {parent}'.rstrip()}` lists its files"
    return not_found(
        f"volume {volume} on Modal has no {path}{did_you_mean(name, known) or listing}"
    )


def unsafe_reason(path: str) -> str | None:
    """Return why the relative ``path`` cannot be a file below a folder; None if it can."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if CONTROL.search(path):
        return "contains a control character"
    if "\\" in path:
        return "contains a backslash, which separates folders on some machines"
    if path.startswith("/") or DRIVE.match(path):
        return "is absolute"
    parts = path.split("/")
    if ".." in parts:
        return "leads out of the folder"
    if any(part in ("", ".") for part in parts):
        return "has an empty part"
    return None


def is_temporary(path: str) -> bool:
    """Return whether a part of ``path`` is the name of an unfinished file or folder."""
    return any(TEMPORARY.match(part) for part in path.split("/"))


def make_parent(root: Path, path: str) -> Path:
    """Create and return the folder that holds ``path`` below ``root``.

    Raises UnsafePath if the name or a symbolic link leads out of ``root``.
    """
    reason = unsafe_reason(path)
    if reason is not None:
        raise UnsafePath(f"the name {reason}")
    folder = root
    folder.mkdir(parents=True, exist_ok=True)
    for part in path.split("/")[:-1]:
        folder = folder / part
        try:
            folder.mkdir()
        except FileExistsError:
            mode = folder.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise UnsafePath(f"{folder} is a symbolic link") from None
            if not stat.S_ISDIR(mode):
                raise UnsafePath(f"{folder} is a file, but a folder in the volume") from None
    return folder


def local_path(root: Path, path: str) -> Path:
    """Return the local path of the volume's file ``path``, and create its folder.

    Raises UnsafePath as ``make_parent`` does, and if a folder has the file's name.
    """
    target = make_parent(root, path) / path.rpartition("/")[2]
    if target.is_dir() and not target.is_symlink():
        raise UnsafePath(f"{target} is a folder, but a file in the volume")
    return target


def temporary_path(target: Path, ending: str) -> Path:
    """Return the path of the temporary file ``.<name><ending>`` beside ``target``."""
    name = target.name
    while len(os.fsencode(name)) > MAX_NAME_BYTES:
        name = name[:-1]
    return target.with_name(f".{name}{ending}")
