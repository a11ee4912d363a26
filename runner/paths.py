"""Paths on the command line: made absolute where they were typed, translated to where the job sees them.

A path means the same on every target, because a run that began with ``data.source=texts/`` on the host must
not look like another run under compose. So what lies in the checkout is written relative to it (the job's
working folder everywhere), and what lies outside is mounted in the container under the very same path.
"""

from __future__ import annotations

import re
from pathlib import Path

from job.pretrained import FINEWEB, GPT2

PROMPT_KEYS = {"sample.prompt", "prompt"}

NAMES = {"stdlib", FINEWEB, "null"}  # sources that are words, even where a file has that name

# Overrides whose value may be a path, and the values that are words all the same. A prompt is one where it begins with @.
PATH_KEYS = {"source": NAMES, "init_from": {*GPT2, "null"}}

# Mounting over one of these would take the container's own programs away.
SYSTEM = {
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


def path_in(override: str) -> str | None:
    """The path inside ``key=value``; None where the value can't be one."""
    key, _, value = override.partition("=")
    key = key.strip().removeprefix("--")
    if key in PROMPT_KEYS and value.startswith("@") and len(value) > 1:
        return value[1:]
    section, _, last = key.rpartition(".")
    if last in PATH_KEYS and section in ("", "data", "train") and value and "://" not in value:
        return None if value in PATH_KEYS[last] else value
    return None


def replace_path(override: str, path: str) -> str:
    """``key=value`` with another path in it."""
    old = path_in(override)
    return override if old is None else override[: len(override) - len(old)] + path


def absolute(path: str, cwd: Path) -> str:
    """``path`` seen from ``cwd`` if it exists there, else unchanged: it may be a name that the job knows."""
    if path in NAMES or "://" in path:
        return path
    here = Path(path).expanduser()
    here = here if here.is_absolute() else cwd / here
    return str(here) if solid_part(here).exists() else path


def solid_part(path: Path) -> Path:
    """The path up to the first part with a glob's signs: what can be mounted."""
    parts: list[str] = []
    for part in path.parts:
        if re.search(r"[*?\[]", part):
            break
        parts.append(part)
    return Path(*parts) if parts else Path()


def mount_point(path: Path) -> str:
    """Where a container sees ``path`` of this machine: under the same name, unless that is a system folder."""
    own = len(path.parts) > 2 and path.parts[1] not in SYSTEM
    return path.as_posix() if own else f"/vol/given{path.as_posix()}"
