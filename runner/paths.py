"""Paths on the command line: made absolute, then translated to the paths that the job sees.

A path means the same on every target, so that a run with ``data.source=texts/`` can be resumed on
another target. Paths in the checkout are written relative to it; folders outside it are mounted in
the container under the same path.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from job.pretrained import FINEWEB, GPT2

PROMPT_KEYS = {"sample.prompt", "prompt"}  # the value is a path if it begins with @

# Sources that are not files, even if a file has that name.
SOURCE_NAMES = {"stdlib", FINEWEB, "null"}

# Keys whose value may be a path, and the values that are not.
PATH_KEYS = {"source": SOURCE_NAMES, "init_from": {*GPT2, "null"}}

# A mount over one of these would hide the container's own files.
SYSTEM_FOLDERS = {
    "usr",
    "lib",
    "lib64",
    "bin",
    "sbin",
    "etc",
    "opt",
    "proc",
    "sys",
    "dev",
    "var",
    "workspace",
    "vol",
}


def is_path(text: str) -> bool:
    """Return True if the word can only be a file: it names a folder or ends in .yaml or .yml."""
    return "/" in text or "\\" in text or text.endswith((".yaml", ".yml"))


def path_in(override: str) -> str | None:
    """Return the path in ``key=value``; None if the value is not one."""
    key, _, value = override.partition("=")
    key = key.strip().removeprefix("--")
    if key in PROMPT_KEYS and value.startswith("@") and len(value) > 1:
        return value[1:]
    section, _, last = key.rpartition(".")
    if last in PATH_KEYS and section in ("", "data", "train") and value and "://" not in value:
        return None if value in PATH_KEYS[last] else value
    return None


def replace_path(override: str, path: str) -> str:
    """Return ``key=value`` with a different path."""
    old = path_in(override)
    return override if old is None else override[: len(override) - len(old)] + path


def absolute(path: str, cwd: Path) -> str:
    """Return ``path`` from ``cwd`` if it exists there, else unchanged: the job may know it."""
    if path in SOURCE_NAMES or "://" in path:
        return path
    resolved = Path(os.path.normpath(cwd / Path(path).expanduser()))
    return str(resolved) if literal_prefix(resolved).exists() else path


def literal_prefix(path: Path) -> Path:
    """Return the path up to its first part with a wildcard, which is what can be mounted."""
    parts: list[str] = []
    for part in path.parts:
        if re.search(r"[*?\[]", part):
            break
        parts.append(part)
    return Path(*parts) if parts else Path()


def mount_point(path: Path) -> str:
    """Return the mount point of a folder: its own path, unless that is a system folder."""
    is_free = len(path.parts) > 2 and path.parts[1] not in SYSTEM_FOLDERS
    return path.as_posix() if is_free else f"/vol/given{path.as_posix()}"
