"""Names from a volume's listing: which may become files here, and which are nobody's to transfer."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
DRIVE = re.compile(r"^[A-Za-z]:")
RESERVED = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$", re.IGNORECASE)  # Windows opens devices
FORBIDDEN = re.compile(r'[<>:"|?*]|[. ]$')  # on Windows alone

PART, BLOCKS = ".part", ".part.blocks"
# What a writer has not finished: ours, the trainer's (job/files.py, model/checkpoint.py), and what belongs
# to one machine's process. `.gitkeep` keeps the empty folders of volumes/ in git,
# and `.sync` in the cache is the journal's.
TEMPORARY = re.compile(r"^\..*\.(part|part\.blocks|tmp)$|^\.partial_|^\.replaced_|^\.gitkeep$|^\.sync$")
OF_A_PROCESS = {"lock", "heartbeat"}


class Refused(OSError):
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
        raise Refused(f"the name {why}")
    here = root
    here.mkdir(parents=True, exist_ok=True)
    for part in path.split("/")[:-1]:
        here = here / part
        try:
            here.mkdir()
        except FileExistsError:
            mode = here.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise Refused(f"{here} is a symbolic link, which leads elsewhere") from None
            if not stat.S_ISDIR(mode):
                raise Refused(f"{here} is a file here and a folder in the volume") from None
    return here


def target_of(root: Path, path: str) -> Path:
    """Where the file ``path`` of a volume lies below ``root``. Raises Refused as ``folder_of`` does, and
    where a folder is in its place."""
    target = folder_of(root, path) / path.rpartition("/")[2]
    if target.is_dir() and not target.is_symlink():
        raise Refused(f"{target} is a folder here and a file in the volume")
    return target


def beside(target: Path, ending: str) -> Path:
    """The temporary file ``.<name><ending>`` beside ``target``."""
    name = target.name
    while len(os.fsencode(name)) > 230:  # of 255 bytes that file systems allow
        name = name[:-1]
    return target.with_name(f".{name}{ending}")
