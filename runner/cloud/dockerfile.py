"""The Dockerfile as Modal's client reads it: what it collects for a COPY, and what it would silently leave out.

Docker builds all of these; on Modal they fail minutes later on the server, or make an image that lacks files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from runner.errors import RunnerError

# What an instruction must not have, and what to write instead. Read from modal 1.6.4.
NOT_ON_MODAL = (
    (r"^COPY\s+(--\S+\s+)*\[", "Modal does not read a list in brackets; write COPY SOURCE TARGET"),
    (r"^COPY\s+(?!.*--from=).*\$", "Modal does not fill in variables there; write the path out"),
    (r"^COPY\s+.*--(parents|exclude)", "Modal does not know --parents and --exclude; name the files"),
    (r"^COPY\s+.*<<", "Modal does not take a heredoc there; put it into a file"),
    (r"^COPY\s+(--\S+\s+)*\./\s", "Modal collects nothing for ./ ; write COPY . TARGET"),
    (r"^ADD\s+(?!.*://)", "Modal does not collect what ADD takes from here; write COPY"),
    (r"^RUN\s+.*--mount=type=bind(?!\S*from=)", "Modal does not collect what a bind mount reads; write COPY"),
    (
        r"^ENTRYPOINT\s+(?!.*\$@)",
        'on Modal an ENTRYPOINT must end in exec "$@"; leave it to docker-compose.yml',
    ),
)


def read_dockerfile(checkout: Path) -> list[tuple[int, str]]:
    """``instructions`` of the checkout's Dockerfile. Raises RunnerError, with the line, for one that Modal
    can't build."""
    path = checkout / "Dockerfile"
    if not path.is_file():
        raise RunnerError(f"there is no Dockerfile in {checkout}, which the image is built from")
    found = instructions(path.read_text(encoding="utf-8"))
    for number, what, remedy in faults(checkout, found):
        raise RunnerError(f"Dockerfile:{number}: {what}; {remedy}")
    return found


def faults(checkout: Path, found: list[tuple[int, str]]) -> Iterator[tuple[int, str, str]]:
    """(line, what is wrong, what to do) of every instruction that Modal can't build."""
    for number, instruction in found:
        for pattern, words in NOT_ON_MODAL:
            if re.search(pattern, instruction, re.IGNORECASE):
                what, _, remedy = words.partition("; ")
                yield number, what, remedy
        for source in _sources(instruction):
            if not any(checkout.glob(source)):
                yield number, f"COPY takes {source}, which is not in {checkout}", "make it, or name another"


def instructions(text: str) -> list[tuple[int, str]]:
    """(line, instruction) without comments; a backslash joins lines."""
    found: list[tuple[int, str]] = []
    parts: list[str] = []
    first = 0
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        first = first if parts else number
        parts.append(stripped.rstrip("\\").strip())
        if not stripped.endswith("\\"):
            found.append((first, " ".join(parts)))
            parts = []
    return found


def copied(checkout: Path, instruction: str) -> list[Path]:
    """The files that a COPY takes from the checkout."""
    found: list[Path] = []
    for source in _sources(instruction):
        for path in sorted(checkout.glob(source)):
            found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return found


def _sources(instruction: str) -> list[str]:
    word, _, rest = instruction.partition(" ")
    if word.upper() != "COPY" or "--from=" in rest:
        return []
    return [part.strip("/") or "." for part in rest.split() if not part.startswith("--")][:-1]
