"""Which files of the checkout are mounted at /workspace: what git would keep, and nothing of the volumes."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from functools import cache
from pathlib import Path, PurePosixPath

# Never mounted, whatever the ignore files say: keys, volumes (which are mounted themselves), environments.
NEVER = (
    "/.git",
    "/.env",
    "/.env.*",
    "/volumes",
    "/.venv",
    "/venv",
    "__pycache__",
    "*.py[cod]",
    "/.mypy_cache",
)
KEPT = ("/.env.example",)


def ignored(checkout: Path) -> Callable[[Path], bool]:
    """A test for a path of the checkout, absolute or relative to it: True where it is left out.

    .gitignore decides, and NEVER. .dockerignore does not: it says what the image is built from, and here that
    is one file of all (`*`, then `!requirements.lock`), while the code is mounted beside the image.
    """
    rules = [*(_rule(line) for line in _lines(checkout / ".gitignore")), *map(_rule, NEVER)]
    rules += [_rule(f"!{line}") for line in KEPT]

    @cache  # the client asks of every file, those below an environment's folder too, and of each 20 rules
    def out(path: PurePosixPath) -> bool:
        return bool(path.parts) and (out(path.parent) or _excluded(path, rules))

    def test(path: Path) -> bool:
        return out(PurePosixPath(path.relative_to(checkout) if path.is_absolute() else path))

    return test


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _rule(line: str) -> tuple[bool, bool, str]:
    """(leaves out, only at the top, pattern), as git reads a line."""
    out = not line.startswith("!")
    pattern = line.removeprefix("!").rstrip("/")
    return out, "/" in pattern, pattern.lstrip("/")


def _excluded(path: PurePosixPath, rules: list[tuple[bool, bool, str]]) -> bool:
    """The last rule that matches decides."""
    result = False
    for out, anchored, pattern in rules:
        if _matches(path, pattern) if anchored else fnmatch.fnmatchcase(path.name, pattern):
            result = out
    return result


def _matches(path: PurePosixPath, pattern: str) -> bool:
    """A pattern with a slash: each part for a part, `**` for any number of them."""
    parts, wanted = list(path.parts), pattern.split("/")
    if "**" in wanted:
        at = wanted.index("**")
        head, tail = wanted[:at], wanted[at + 1 :]
        return (
            len(parts) >= len(head) + len(tail)
            and all(map(fnmatch.fnmatchcase, parts, head))
            and all(map(fnmatch.fnmatchcase, parts[len(parts) - len(tail) :], tail))
        )
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))
