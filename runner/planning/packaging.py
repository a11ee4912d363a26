"""Which files of a folder go where its command runs: what git would keep, and nothing that .dockerignore names.

In a git repository git itself lists them (`git ls-files`), which is exact, quick, and never looks into a folder
that is ignored. Elsewhere the folder is walked with pathspec, nested .gitignore files and all, and an ignored
folder is not entered either: a data/ of 3 GB costs nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pathspec

from runner.plan import UploadManifest
from runner.planning.command_plan import MUCH
from runner.request import UserCommand

# Never, whatever the ignore files say: history, keys, environments, what Python compiles. Names and not patterns:
# asked of 50,000 paths, those of pathspec cost half a second.
NEVER = {
    *(
        ".git",
        ".env",
        "__pycache__",
        ".venv",
        "venv",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
    ),
    *(".ipynb_checkpoints", ".DS_Store"),
}

NAMED = 3  # so many of the largest are named

Spec = pathspec.PathSpec[Any]


@dataclass(frozen=True)
class Listing:
    """Paths relative to ``folder``, with their sizes in bytes; ``links`` are links to folders, which stay."""

    folder: Path
    sizes: dict[str, int]
    links: tuple[str, ...] = ()

    def summary(self) -> UploadManifest:
        """For the plan."""
        total = sum(self.sizes.values())
        tops: dict[
            str, int
        ] = {}  # a folder at the top with all that is in it, as a .gitignore would name it
        for name, size in self.sizes.items():
            top, slash, _ = name.partition("/")
            tops[top + slash] = tops.get(top + slash, 0) + size
        by_size = sorted(tops.items(), key=lambda item: (-item[1], item[0]))
        largest = tuple(by_size[:NAMED]) if total > MUCH else ()
        return UploadManifest(len(self.sizes), total, largest, self.links)

    def below(self, path: str) -> list[str]:
        """The files inside the folder ``path``, relative to it."""
        start = f"{path}/"
        return [name.removeprefix(start) for name in self.sizes if name.startswith(start)]


def list_files(folder: Path, checkout: Path | None = None) -> Listing:
    """Look at the folder. The .dockerignore of our own ``checkout`` is about its image alone, and not asked."""
    listed = _by_git(folder)
    names = _by_walking(folder) if listed is None else listed
    docker = None if checkout == folder else _dockerignore(folder)
    sizes, links = {}, []
    for name in names:
        if _is_never(name) or (docker is not None and docker.match_file(name)):
            continue
        try:
            status = os.stat(os.path.join(folder, name))
        except OSError:  # a tracked file that was deleted, a link to nothing
            continue
        if stat.S_ISREG(status.st_mode):
            sizes[name] = status.st_size
        elif stat.S_ISDIR(status.st_mode):
            if os.path.islink(os.path.join(folder, name)):
                links.append(name)
            else:  # a repository inside this one: git lists its folder alone
                inner = list_files(folder / name)
                inside = {f"{name.rstrip('/')}/{path}": size for path, size in inner.sizes.items()}
                sizes |= {
                    path: size
                    for path, size in inside.items()
                    if not (docker and docker.match_file(path))
                }
                links += [f"{name.rstrip('/')}/{path}" for path in inner.links]
    return Listing(folder, sizes, tuple(links))


def _is_never(path: str) -> bool:
    """Whether one of its parts is a name that is never shipped."""
    parts = path.rstrip("/").split("/")
    name = parts[-1]
    return (
        not NEVER.isdisjoint(parts)
        or (name.startswith(".env.") and name != ".env.example")
        or name.endswith((".pyc", ".pyo", ".pyd"))
    )


def _by_git(folder: Path) -> list[str] | None:
    """What git lists; None outside a repository, without git, and for a folder that its repository ignores."""
    ignored = _git(folder, "check-ignore", "--quiet", ".")
    if ignored is None or ignored[0] != 1:
        return None
    found = _git(
        folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate", "."
    )
    if found is None or found[0]:
        return None
    return [name for name in os.fsdecode(found[1]).split("\0") if name]


def _git(folder: Path, *words: str) -> tuple[int, bytes] | None:
    command = ["git", "-c", "core.quotePath=false", "-c", f"safe.directory={folder}", *words]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.returncode, done.stdout


def _by_walking(folder: Path) -> Iterator[str]:
    def walk(inside: str, rules: tuple[tuple[str, Spec], ...]) -> Iterator[str]:
        own = _read_spec(folder / inside / ".gitignore")
        rules = (*rules, (inside, own)) if own is not None else rules
        with os.scandir(folder / inside) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name = f"{inside}{entry.name}"
            is_folder = entry.is_dir(follow_symlinks=False)
            asked = f"{name}/" if is_folder else name
            if _is_never(name) or _ignores(rules, asked):
                continue
            if is_folder:
                yield from walk(f"{name}/", rules)
            else:
                yield name

    return walk("", ())


def _ignores(rules: tuple[tuple[str, Spec], ...], path: str) -> bool:
    """As git reads nested files: the innermost that says anything decides."""
    for inside, spec in reversed(rules):
        answer = spec.check_file(path.removeprefix(inside)).include
        if answer is not None:
            return answer
    return False


def _dockerignore(folder: Path) -> Spec | None:
    """As Docker reads it: a pattern begins at the folder itself, where git's would be found at any depth."""
    try:
        lines = (
            (folder / ".dockerignore").read_text(encoding="utf-8", errors="replace").splitlines()
        )
    except OSError:
        return None
    rules = []
    for line in (line.strip() for line in lines):
        if line and not line.startswith("#"):
            sign, pattern = ("!", line[1:]) if line.startswith("!") else ("", line)
            rules.append(f"{sign}/{pattern.strip().removeprefix('./').strip('/')}")
    return _spec(rules)


def _read_spec(path: Path) -> Spec | None:
    try:
        return _spec(path.read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return None


def _spec(lines: list[str]) -> Spec:
    return pathspec.PathSpec.from_lines("gitignore", lines)


def keeps_out(listing: Listing, without: tuple[str, ...] = ()) -> Callable[[str], bool]:
    """A test for a path of the folder, True for what is not shipped: for a folder, if nothing inside is.

    ``without``: paths that go elsewhere, with all below them.
    """
    names = [
        name
        for name in listing.sizes
        if not any(name == w or name.startswith(f"{w}/") for w in without)
    ]
    folders: set[str] = set()
    for name in names:
        parent = os.path.dirname(name)
        while parent and parent not in folders:
            folders.add(parent)
            parent = os.path.dirname(parent)
    known = {*names, *folders}
    return lambda path: path not in known


REQUIREMENTS = "requirements.txt"

INSTALL = f"pip install -r {REQUIREMENTS}"

WORD = re.compile(
    r"[\w./+-]+"
)  # what may be a file's name: in `-rdev.txt` too, once the option is off

INSIDE = "/opt/gpt-runner/setup"  # where the lines run, with the files that they name


def setup_lines(command: UserCommand) -> tuple[str, ...]:
    """The shell lines that extend the image, in their order."""
    own = command.requirements and (command.folder / REQUIREMENTS).is_file()
    named = any(REQUIREMENTS in line for line in command.setup)
    return ((INSTALL,) if own and not named else ()) + command.setup


def setup_files(folder: Path, lines: tuple[str, ...]) -> tuple[str, ...]:
    """The folder's files that the lines name: `-r dev.txt`, `bash setup.sh`. They are there when the lines run."""
    words = [word for line in lines for word in WORD.findall(line)]
    named = [name for word in words for name in (word, re.sub(r"^-[rc]", "", word))]
    return tuple(
        dict.fromkeys(
            name
            for name in named
            if ".." not in PurePosixPath(name).parts
            and not PurePosixPath(name).is_absolute()
            and (folder / name).is_file()
        )
    )


def digest(folder: Path, lines: tuple[str, ...], base: str = "") -> str:
    """Tells one layer from another: the lines, the content of their files, and what is below."""
    found = hashlib.sha256(base.encode())
    for line in lines:
        found.update(b"\0" + line.encode())
    for name in setup_files(folder, lines):
        found.update(b"\1" + name.encode() + b"\0" + (folder / name).read_bytes())
    return found.hexdigest()[:16]
