"""A volume of another machine, its folder on this machine, its journal, and the allowed names.

The journal has the files that were verified to be the same on both sides, so they need no transfer:
one JSON line per file, appended after it was verified, with its size and time on both sides. A file
is unchanged as long as these are. Losing the journal costs time, but never a file.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol, cast

from job.files import write_atomically
from job.typed_json import read_json
from runner.console import CliContext
from runner.errors import RunnerError, did_you_mean, not_found, usage
from runner.project import find_checkout, volumes
from runner.target import Target, open_target, remote_targets
from runner.targets.blocks import BlockFiles, RemoteEntry
from runner.targets.modal import TARGET_NAME
from runner.targets.modal.volume import modal_name

# A volume's times are whole seconds, and a container's writes become visible with its next commit,
# some seconds later. A file that was younger than this when it was listed may have changed again
# with the same size and time, so it is transferred again.
SETTLE_TIME_S = 10.0

# Rewrite the journal when it has this many lines more than twice its entries.
MAX_STALE_LINES = 1000


@dataclass(frozen=True)
class VerifiedEntry:
    """One file on both sides. The volume was listed at ``at`` (seconds since the epoch)."""

    path: str
    local: str
    size: int
    modified: int
    local_mtime_ns: int
    at: float


class Journal:
    """The journal of one volume. Threads and processes may share it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, str], VerifiedEntry] = {}
        lines = self._read()
        if lines > 2 * len(self._entries) + MAX_STALE_LINES:
            text = "".join(json.dumps(asdict(entry)) + "\n" for entry in self._entries.values())
            with suppress(OSError):
                write_atomically(file, text)

    def record(self, remote: RemoteEntry, local: Path, listed: float) -> None:
        """Record that ``local`` has the content of ``remote``, which was listed at ``listed``.

        A journal that cannot be written does not fail the transfer: the next one verifies again.
        """
        mtime_ns = local.stat().st_mtime_ns
        entry = VerifiedEntry(
            remote.path, str(local), remote.size, remote.modified, mtime_ns, listed
        )
        line = json.dumps(asdict(entry)) + "\n"
        with self._lock:
            self._entries[entry.path, entry.local] = entry
            with suppress(OSError):
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("ab") as stream:
                    stream.write(line.encode())

    def lookup(self, path: str, local: Path) -> VerifiedEntry | None:
        """Return the entry for both files if ``local`` has not changed since; else None."""
        entry = self._entries.get((path, str(local)))
        if entry is None:
            return None
        try:
            status = os.stat(local)
        except OSError:
            return None
        unchanged = status.st_size == entry.size and status.st_mtime_ns == entry.local_mtime_ns
        return entry if unchanged else None

    def is_unchanged(self, remote: RemoteEntry, local: Path, settled: bool = True) -> bool:
        """Return True if neither side changed since both were verified.

        With ``settled``, a change within the same second is excluded too.
        """
        entry = self.lookup(remote.path, local)
        if entry is None or (entry.size, entry.modified) != (remote.size, remote.modified):
            return False
        return not settled or is_settled(remote, entry.at)

    def _read(self) -> int:
        """Read the entries and return the number of lines."""
        try:
            lines = self.file.read_bytes().splitlines()
        except OSError:
            return 0
        for line in lines:
            with suppress(ValueError):  # a killed process wrote half a line, or the disk lost it
                entry = read_json(VerifiedEntry, line)
                self._entries[entry.path, entry.local] = entry
        return len(lines)


def is_settled(entry: RemoteEntry, listed: float) -> bool:
    """Return True if a later change would get a different time."""
    return entry.modified + SETTLE_TIME_S < listed


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
    """A volume of ``target`` and its folder ``root`` on this machine."""

    volume: str
    target: Target
    files: BlockFiles
    root: Path
    journal: Journal
    lock: Path

    @property
    def place(self) -> str:
        """Return the name of the machine that has the volume, for messages."""
        return "Modal" if self.target.bills else self.target.name.partition(":")[2]

    @property
    def has_runs(self) -> bool:
        """Return True if the folders of the volume are runs."""
        return self.volume == "checkpoints"


def local_folder(cli: CliContext, volume: str) -> Path:
    """Return the volume's folder on this machine. Raises RunnerError for an unknown volume."""
    modal_name(volume, cli.environ)
    folder: Path = getattr(volumes(find_checkout(cli.cwd), cli.environ), volume)
    return folder


def open_mapping(
    cli: CliContext,
    volume: str,
    root: Path | None = None,
    create: bool = False,
    target: str | None = None,
) -> VolumeMapping:
    """Open a volume and map it to ``root``, by default to its folder in the checkout.

    ``create`` creates the volume if it does not exist. Without a ``target``, it is Modal's, or
    that of the only box without an account. Raises RunnerError.
    """
    folder = local_folder(cli, volume)
    root = Path(os.path.abspath(root or folder))
    opened = _remote_target(cli, target)
    opened.check_configured()
    files = opened.block_files(volume, create)
    state = local_folder(cli, "cache") / STATE_FOLDER
    lock = state / f"{files.id}-{sha256(os.fsencode(root)).hexdigest()[:12]}.lock"
    return VolumeMapping(volume, opened, files, root, Journal(state / f"{files.id}.jsonl"), lock)


def _remote_target(cli: CliContext, name: str | None) -> RemoteVolumes:
    """Return the target whose volumes are copied. Raises RunnerError for one without volumes."""
    checkout = find_checkout(cli.cwd)
    if name is None:
        usable = [t.name for t in remote_targets(cli, checkout) if t.is_configured()]
        name = TARGET_NAME if TARGET_NAME in usable or not usable else usable[0]
    target = open_target(name, cli, checkout)
    if not target.has_remote_volumes:
        raise usage(
            f"--target {name} uses this machine's volumes directly, so there is nothing to copy"
        )
    return cast(RemoteVolumes, target)


class RemoteVolumes(Target, Protocol):
    """A target whose volumes are on another machine."""

    def block_files(self, volume: str, create: bool = False) -> BlockFiles:
        """Return the volume's files; ``create`` creates a missing volume."""
        ...


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


def is_active_remotely(mapping: VolumeMapping, run: str) -> bool:
    """Return True if the run is alive on the target.

    The heartbeat does not count: a run that ended, or that was pushed, leaves a fresh one behind.
    """
    state = mapping.target.state(run)
    return state is not None and state.alive


def list_remote(mapping: VolumeMapping, path: str) -> list[RemoteEntry]:
    """Return the entries at ``path``. Raises RunnerError, exit status 102, if it does not exist."""
    try:
        return mapping.files.listing(path)
    except FileNotFoundError as error:
        raise _remote_not_found(mapping, path) from error


def _remote_not_found(mapping: VolumeMapping, path: str) -> RunnerError:
    volume = mapping.volume
    if not path.strip("/"):
        return not_found(
            f"volume {volume} on {mapping.place} is empty; fill it: `runner push {volume} PATH`"
        )
    parent, _, name = path.strip("/").rpartition("/")
    try:
        entries = mapping.files.listing(parent, recursive=False)
        known = [entry.path.rsplit("/", 1)[-1] for entry in entries]
    except FileNotFoundError:
        known = []
    listing = f"; `{f'runner ls {volume} {parent}'.rstrip()}` lists its files"
    return not_found(
        f"volume {volume} on {mapping.place} has no {path}{did_you_mean(name, known) or listing}"
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
    """Return True if a part of ``path`` is the name of an unfinished file or folder."""
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
    """Return the path of the temporary file ``.<name><ending>`` next to ``target``."""
    name = target.name
    while len(os.fsencode(name)) > MAX_NAME_BYTES:
        name = name[:-1]
    return target.with_name(f".{name}{ending}")
