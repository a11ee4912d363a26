"""Names from a volume's listing: which may become files here, and which are nobody's to transfer."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from job.step_folders import LATEST, MANIFEST
from runner.targets.modal.volume import RemoteEntry
from runner.transfer.checkpoints import Manifest, is_record, missing_from, parse_manifest, step_of
from runner.transfer.workers import FailedTransfer

CONTROL = re.compile(r"[\x00-\x1f\x7f]")

DRIVE = re.compile(r"^[A-Za-z]:")

RESERVED = re.compile(
    r"^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$", re.IGNORECASE
)  # Windows opens devices

FORBIDDEN = re.compile(r'[<>:"|?*]|[. ]$')  # on Windows alone

PART, BLOCKS = ".part", ".part.blocks"

# What a writer has not finished: ours, the trainer's (job/files.py, model/checkpoint.py), and what belongs
# to one machine's process. `.gitkeep` keeps the empty folders of volumes/ in git,
# and `.sync` in the cache is the journal's.
TEMPORARY = re.compile(
    r"^\..*\.(part|part\.blocks|tmp)$|^\.partial_|^\.replaced_|^\.gitkeep$|^\.sync$"
)

OF_A_PROCESS = {"lock", "heartbeat"}


class UnsafePath(OSError):
    """A name that would leave the folder, or can't be a file here; the text says why."""


def why_refused(path: str, windows: bool = os.name == "nt") -> str | None:
    """Why ``path``, relative and with ``/``, can't be a file below a folder here; None where it can."""
    if CONTROL.search(path):
        return "holds a control character"
    if "\\" in path:
        return "holds a backslash, which on some machines parts folders"
    if path.startswith("/") or DRIVE.match(path):
        return "is absolute"
    parts = path.split("/")
    if ".." in parts:
        return "leaves the folder"
    if any(part in ("", ".") for part in parts):
        return "has an empty part"
    if windows and any(RESERVED.match(part) or FORBIDDEN.search(part) for part in parts):
        return "is no name on Windows"
    return None


def is_temporary(path: str) -> bool:
    """Whether a part of ``path`` is the name of something half-written."""
    return any(TEMPORARY.match(part) for part in path.split("/"))


def folder_of(root: Path, path: str) -> Path:
    """The folder in which ``path`` of a volume lies below ``root``, made where it is missing.

    Raises Refused where the name, or a symbolic link on the way, would lead out of ``root``.
    """
    why = why_refused(path)
    if why is not None:
        raise UnsafePath(f"the name {why}")
    here = root
    here.mkdir(parents=True, exist_ok=True)
    for part in path.split("/")[:-1]:
        here = here / part
        try:
            here.mkdir()
        except FileExistsError:
            mode = here.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise UnsafePath(f"{here} is a symbolic link, which leads elsewhere") from None
            if not stat.S_ISDIR(mode):
                raise UnsafePath(f"{here} is a file here and a folder in the volume") from None
    return here


def target_of(root: Path, path: str) -> Path:
    """Where the file ``path`` of a volume lies below ``root``. Raises Refused as ``folder_of`` does, and
    where a folder is in its place."""
    target = folder_of(root, path) / path.rpartition("/")[2]
    if target.is_dir() and not target.is_symlink():
        raise UnsafePath(f"{target} is a folder here and a file in the volume")
    return target


def beside(target: Path, ending: str) -> Path:
    """The temporary file ``.<name><ending>`` beside ``target``."""
    name = target.name
    while len(os.fsencode(name)) > 230:  # of 255 bytes that file systems allow
        name = name[:-1]
    return target.with_name(f".{name}{ending}")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. ``folder`` is ``<run>/step_...``; ``manifest_content`` as in the volume."""

    folder: str
    step: int
    entries: tuple[RemoteEntry, ...]
    manifest: Manifest = field(hash=False)
    manifest_content: bytes = b""

    @property
    def run(self) -> str:
        """Its run."""
        return self.folder.split("/")[0]

    @property
    def name(self) -> str:
        """``step_...``: what ``latest`` names."""
        return self.folder.split("/")[1]

    @property
    def size(self) -> int:
        """Bytes in all its files."""
        return sum(entry.size for entry in self.entries)


@dataclass
class Selection:
    """What a transfer is about: ``refused`` can't become files, ``notes`` say what was passed over."""

    files: list[RemoteEntry] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    refused: list[FailedTransfer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def select(
    entries: Iterable[RemoteEntry],
    read_manifest: Callable[[RemoteEntry], bytes],
    *,
    runs: bool,
    everything: bool,
) -> Selection:
    """Choose of a listing. ``runs``: it is of the checkpoints volume, where a run gives its records and its
    newest complete checkpoint, or with ``everything`` all of them."""
    chosen = Selection()
    entries = list(entries)
    # Only a trainer's run has steps; of a command's run and of a kept folder everything is wanted.
    trained = {of_step[0] for entry in entries if (of_step := step_of(entry.path)) is not None}
    steps: dict[tuple[str, str, int], list[RemoteEntry]] = {}
    for entry in entries:
        if entry.kind == "directory":
            continue
        why = why_refused(entry.path)
        if why is not None:
            chosen.refused.append(FailedTransfer(entry.path, f"the name {why}"))
        elif entry.kind != "file":
            chosen.notes.append(f"{entry.path} is left out: it is a {entry.kind}, not a file")
        elif is_temporary(entry.path):
            continue
        elif runs and (of_step := step_of(entry.path)) is not None:
            steps.setdefault(of_step, []).append(entry)
        elif not runs or _is_wanted(entry.path, everything, entry.path.split("/")[0] in trained):
            chosen.files.append(entry)
    newest: set[str] = set()
    for (run, name, step), found in sorted(
        steps.items(), key=lambda item: (item[0][0], -item[0][2])
    ):
        if run in newest and not everything:
            continue
        checkpoint = _complete(f"{run}/{name}", step, found, read_manifest, chosen)
        if checkpoint is not None:
            newest.add(run)
            chosen.checkpoints.append(checkpoint)
    return chosen


def _is_wanted(path: str, everything: bool, trained: bool) -> bool:
    name = path.rsplit("/", 1)[-1]
    if not everything and "/last_whole/" in path:
        return False  # a second copy of a command's checkpoint
    if name in OF_A_PROCESS or (name == LATEST and path.count("/") == 1):
        return False  # `latest` is written from what is whole, and not copied
    return everything or not trained or is_record(path)


def _complete(
    folder: str,
    step: int,
    entries: list[RemoteEntry],
    read_manifest: Callable[[RemoteEntry], bytes],
    chosen: Selection,
) -> Checkpoint | None:
    sizes = {entry.path.removeprefix(f"{folder}/"): entry.size for entry in entries}
    listed = next((entry for entry in entries if entry.path == f"{folder}/{MANIFEST}"), None)
    content = b"" if listed is None else read_manifest(listed)
    manifest = parse_manifest(content)
    if manifest is None:
        chosen.notes.append(f"{folder} is passed over: it is not complete ({MANIFEST} is missing)")
        return None
    lacking = missing_from(manifest, sizes)
    if lacking is not None:
        chosen.notes.append(f"{folder} is passed over: it is not complete ({lacking})")
        return None
    return Checkpoint(folder, step, tuple(entries), manifest, content)
