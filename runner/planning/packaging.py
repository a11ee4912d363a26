"""The files of a command's folder to upload: those that Git would track, less .dockerignore's.

In a repository, Git lists the files (`git ls-files`), which is exact, fast, and never enters an
ignored folder. Elsewhere the folder is walked with pathspec and its .gitignore files; an ignored
folder is not entered either, so that a data/ of 3 GB costs nothing. Nothing of the folder is run.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from job.files import read_file
from runner.errors import RunnerError, usage
from runner.git import Repository, find_repository
from runner.plan import CREDENTIALS, UploadManifest
from runner.planning.ignore_rules import (
    DockerIgnore,
    Spec,
    ignored_data,
    is_never_uploaded,
    may_hold_credentials,
    read_gitignore,
)
from runner.request import UserCommand

LARGE_BYTES = 100 * 1000 * 1000  # the plan names the largest files of a folder above this size
MAX_LARGEST = 3
MAX_PROBLEMS = 5  # named in an error

REQUIREMENTS = "requirements.txt"
INSTALL = f"pip install -r {REQUIREMENTS}"
# A possible file name in a setup line; `-rdev.txt` is split from its option later.
WORD = re.compile(r"[\w./+-]+")
PIP_INSTALL = re.compile(r"\bpip3? install\b")
# The file of an option (`-r dev.txt`, `-rdev.txt`), or a package that is a path (`./pkg[extra]`).
PIP_FILE = re.compile(
    r"(?:^|\s)(?:(?:-[rce]|--requirement|--constraint|--editable)(?:\s*|=)([^\s\[;=-][^\s\[;]*)"
    r"|(\.{1,2}(?:/[^\s\[;]*)?)(?=[\s\[;]|$))"
)
SETUP_FOLDER = "/opt/gpt-runner/setup"  # of the image: setup lines run in it, with their files


@dataclass(frozen=True)
class Listing:
    """Files of ``folder`` and their sizes in bytes, and the omitted and unreadable ones."""

    folder: Path
    sizes: dict[str, int] = field(default_factory=dict)
    omitted: dict[str, str] = field(default_factory=dict)  # path: reason
    problems: dict[str, str] = field(default_factory=dict)  # path: reason

    def check(self, script: str | None = None) -> None:
        """Raise RunnerError if a file, or the script that the command starts, is not uploaded."""
        if script is not None and script not in self.sizes and script not in self.problems:
            if not (self.folder / script).exists():
                raise usage(f"the command starts {script}, which does not exist in {self.folder}")
            reason = self.omitted.get(script, "an ignore rule excludes it")
            raise usage(
                f"the command starts {script}, which is not uploaded ({reason}); "
                "correct .gitignore or .dockerignore"
            )
        if not self.problems:
            return
        shown = [
            f"{_printable(f'{self.folder}/{path}')} ({reason})"
            for path, reason in sorted(self.problems.items())
        ]
        more = f" and {len(shown) - MAX_PROBLEMS} more" if len(shown) > MAX_PROBLEMS else ""
        raise RunnerError(
            f"cannot upload {', '.join(shown[:MAX_PROBLEMS])}{more}; fix the permissions or names, "
            "or list the files in .dockerignore"
        )

    def summary(self) -> UploadManifest:
        """Return the summary for the plan."""
        total = sum(self.sizes.values())
        tops: dict[str, int] = {}  # top-level files and folders, as .gitignore would name them
        for name, size in self.sizes.items():
            top, slash, _ = name.partition("/")
            tops[top + slash] = tops.get(top + slash, 0) + size
        by_size = sorted(tops.items(), key=lambda item: (-item[1], item[0]))
        largest = tuple(by_size[:MAX_LARGEST]) if total > LARGE_BYTES else ()
        omitted = tuple((_printable(path), reason) for path, reason in sorted(self.omitted.items()))
        return UploadManifest(len(self.sizes), total, largest, omitted)

    def below(self, path: str) -> list[str]:
        """Return the files inside the folder ``path``, relative to it."""
        start = f"{path}/"
        return [name.removeprefix(start) for name in self.sizes if name.startswith(start)]


def list_files(folder: Path, checkout: Path | None = None) -> Listing:
    """List the files to upload. The .dockerignore of our own ``checkout`` is for its image alone.

    Omits and reports links that lead out of the folder, to a folder, or to a file that is not
    uploaded, and files that may hold credentials, unless .dockerignore has a rule ``!PATH`` for
    them.
    """
    lister = _Lister(folder, None if checkout == folder else DockerIgnore.read(folder))
    lister.add_files(folder, "")
    lister.add_links()
    lister.listing.omitted.update(ignored_data(folder))
    return lister.listing


class _Lister:
    """Collect the files of a folder and of the repositories in it."""

    def __init__(self, folder: Path, docker: DockerIgnore | None) -> None:
        self.folder = folder
        self.docker = docker
        self.root = os.path.realpath(folder)
        self.listing = Listing(folder)
        self._links: list[str] = []
        self._inside: dict[str, bool] = {}

    def add_files(self, folder: Path, prefix: str) -> None:
        """Add the files of the folder or repository at ``prefix``."""
        names, unreadable = _list_names(folder, is_nested=bool(prefix))
        for name, reason in unreadable.items():
            path = prefix + name
            if not self._is_ignored(path):
                self.listing.problems[path] = reason
        for name in names:
            self._add(prefix + name)

    def add_links(self) -> None:
        """Add links to files that are uploaded. Any other link could expose a private file."""
        sizes, omitted = self.listing.sizes, self.listing.omitted
        for path in self._links:
            target = os.path.realpath(self.folder / path)
            relative = os.path.relpath(target, self.root)
            if relative in sizes:
                sizes[path] = sizes[relative]
            elif not os.path.exists(target):
                omitted[path] = "broken link"
            elif relative.split("/")[0] == "..":
                omitted[path] = "link out of the folder"
            elif os.path.isdir(target):
                omitted[path] = "link to a folder"
            else:
                omitted[path] = "link to a file that is not uploaded"

    def _is_ignored(self, path: str) -> bool:
        return is_never_uploaded(path) or (self.docker is not None and self.docker.ignores(path))

    def _add(self, path: str) -> None:
        if self._is_ignored(path):
            return
        full = os.path.join(self.folder, path)
        try:
            status = os.lstat(full)
        except FileNotFoundError:  # tracked, but deleted
            return
        except OSError as error:
            self.listing.problems[path] = str(error.strerror)
            return
        if may_hold_credentials(self.folder, path) and not (
            self.docker is not None and self.docker.names(path)
        ):
            self.listing.omitted[path] = CREDENTIALS
        elif stat.S_ISLNK(status.st_mode):
            self._links.append(path)
        elif stat.S_ISDIR(status.st_mode):  # a repository in this one: Git lists its folder alone
            self.add_files(Path(full), f"{path.rstrip('/')}/")
        elif not stat.S_ISREG(status.st_mode):
            self.listing.omitted[path] = "not a regular file"
        # Git still lists files of a folder that a link replaced.
        elif not self._is_inside(os.path.dirname(path)):
            self.listing.omitted[path] = "link out of the folder"
        elif not path.isprintable() and re.search("[\udc80-\udcff]", path):
            self.listing.problems[path] = "its name is not valid UTF-8"
        elif not os.access(full, os.R_OK):
            self.listing.problems[path] = "Permission denied"
        else:
            self.listing.sizes[path] = status.st_size

    def _is_inside(self, parent: str) -> bool:
        if parent not in self._inside:
            real = os.path.realpath(os.path.join(self.folder, parent))
            self._inside[parent] = real == os.path.join(self.root, parent).rstrip("/")
        return self._inside[parent]


def _list_names(folder: Path, is_nested: bool) -> tuple[list[str], dict[str, str]]:
    """Return the files of a folder that no .gitignore rule excludes, and unreadable folders."""
    repository = find_repository(folder)
    if is_nested and repository is not None and repository.root != folder.resolve():
        repository = None  # a submodule that was not fetched
    listed = _list_with_git(folder, repository) if repository is not None else None
    if listed is not None:
        return listed
    unreadable: dict[str, str] = {}
    return list(_walk(folder, repository, unreadable)), unreadable


def _list_with_git(folder: Path, repository: Repository) -> tuple[list[str], dict[str, str]] | None:
    """Return None without Git, and for a folder that its repository ignores."""
    if folder.resolve() != repository.root:
        ignored = repository.run(folder, "check-ignore", "--quiet", ".")
        if ignored is None or ignored.returncode != 1:
            return None
    options = ("--cached", "--others", "--exclude-standard", "--deduplicate")
    answer = repository.run(folder, "ls-files", "-z", *options, ".")
    if answer is None or answer.returncode or b"unable to access" in answer.stderr:
        return None  # the walk reports a .gitignore that is not readable
    names = [name for name in os.fsdecode(answer.stdout).split("\0") if name]
    unreadable = re.findall(r"could not open directory '(.*)/': (.*)", os.fsdecode(answer.stderr))
    root = os.path.relpath(repository.root, folder.resolve())
    return names, {
        os.path.normpath(os.path.join(root, path)): problem for path, problem in unreadable
    }


@dataclass(frozen=True)
class _Rules:
    """A .gitignore: its patterns start at the folder ``base``, relative to the walked one.

    For a .gitignore above the walked folder, ``above`` is the path from it to the walked folder.
    """

    spec: Spec
    base: str = ""
    above: str = ""

    def ignores(self, path: str) -> bool | None:
        """Return True if the path is ignored, None if no pattern matches."""
        return self.spec.check_file(self.above + path.removeprefix(self.base)).include


def _walk(folder: Path, repository: Repository | None, unreadable: dict[str, str]) -> Iterator[str]:
    def walk(base: str, rules: tuple[_Rules, ...]) -> Iterator[str]:
        own = read_gitignore(folder / base / ".gitignore")
        rules = (*rules, _Rules(own, base)) if own is not None else rules
        try:
            with os.scandir(folder / base) as entries:
                sorted_entries = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            unreadable[base.rstrip("/")] = str(error.strerror)
            return
        for entry in sorted_entries:
            name = f"{base}{entry.name}"
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_never_uploaded(name) or _is_ignored(rules, f"{name}/" if is_folder else name):
                continue
            if is_folder:
                yield from walk(f"{name}/", rules)
            else:
                yield name

    return walk("", _rules_above(folder.resolve(), repository))


def _rules_above(folder: Path, repository: Repository | None) -> tuple[_Rules, ...]:
    """Return the rules of a repository for a folder in it; none if they ignore the folder."""
    if repository is None:
        return ()
    files = [(repository.exclude_file, repository.root)]
    parents = [repository.root, *reversed(folder.parents)]
    files += [
        (parent / ".gitignore", parent)
        for parent in dict.fromkeys(parents)
        if parent.is_relative_to(repository.root) and parent != folder
    ]
    rules: list[_Rules] = []
    for file, base in files:
        above = f"{folder.relative_to(base).as_posix()}/".removeprefix("./")
        if (spec := read_gitignore(file)) is not None:
            rules.append(_Rules(spec, above=above))
    # Patterns match a folder below an ignored one too.
    return () if _is_ignored(tuple(rules), "") else tuple(rules)


def _is_ignored(rules: tuple[_Rules, ...], path: str) -> bool:
    """Return True if a path is ignored: as in Git, the innermost file that matches decides."""
    for rule in reversed(rules):
        ignored = rule.ignores(path)
        if ignored is not None:
            return ignored
    return False


def _printable(path: str) -> str:
    """Return a path without control characters and invalid bytes, for messages."""
    return path if path.isprintable() else ascii(path)[1:-1]


def make_omitted_test(listing: Listing, without: tuple[str, ...] = ()) -> Callable[[str], bool]:
    """Return a test for paths that are not uploaded, or folders without uploaded files.

    ``without``: paths that are uploaded in another way, with everything below them.
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
    uploaded = {*names, *folders}
    return lambda path: path not in uploaded


def setup_lines(command: UserCommand) -> tuple[str, ...]:
    """Return the shell lines that extend the image, in order.

    Raises a usage error if pip would fail in the image: on a file that is missing or outside the
    folder, or on a package that is a folder.
    """
    has_requirements = command.requirements and (command.folder / REQUIREMENTS).is_file()
    is_named = any(REQUIREMENTS in line for line in command.setup)
    lines = ((INSTALL,) if has_requirements and not is_named else ()) + command.setup
    for line in lines:
        if PIP_INSTALL.search(line):
            _check_pip_files(command.folder, line, "--setup")
    for path in setup_files(command.folder, lines):
        if path.endswith(".txt"):
            text = read_file(command.folder / path).decode("utf-8", "replace")
            for number, line in enumerate(text.splitlines(), 1):
                _check_pip_files(command.folder, line, f"{path}:{number}")
    return lines


def _check_pip_files(folder: Path, line: str, place: str) -> None:
    """Refuse a line that names a local file or folder that pip cannot read in the image."""
    for match in PIP_FILE.finditer(re.sub(r"(^|\s)#.*", "", line)):
        name = match[1] or match[2]
        path = os.path.normpath(os.path.join(os.path.dirname(place.partition(":")[0]), name))
        if "$" in name or "://" in name or os.path.isabs(name) or _is_file_inside(folder, path):
            continue
        if (folder / path).is_dir():
            raise usage(
                f"{place}: {name} is a folder, but the image is built without the code of {folder}"
                "; install it when the command starts: -- bash -c 'pip install -e . && ...'; "
                f"--setup none ignores {REQUIREMENTS}"
            )
        problem = "is outside" if (folder / path).exists() else "does not exist in"
        raise usage(
            f"{place}: {name} {problem} {folder}; correct the path or copy the file into the "
            f"folder; --setup none ignores {REQUIREMENTS}"
        )


def setup_files(folder: Path, lines: tuple[str, ...]) -> tuple[str, ...]:
    """Return the folder's files that the lines name, as in `-r dev.txt` or `bash setup.sh`.

    Requirements files are read too, because they name further files: `-r base.txt`, `./a.whl`.
    """
    files: dict[str, None] = {}
    pending = [(line, "") for line in lines]
    while pending:
        line, parent = pending.pop(0)
        matches = WORD.findall(line.partition(" #")[0])
        for name in (name for match in matches for name in (match, re.sub(r"^-[rc]", "", match))):
            path = os.path.normpath(os.path.join(parent, name))
            if path in files or not _is_file_inside(folder, path):
                continue
            files[path] = None
            if path.endswith(".txt"):
                text = read_file(folder / path).decode("utf-8", "replace")
                pending += [(each, os.path.dirname(path)) for each in text.splitlines()]
    return tuple(files)


def setup_digest(folder: Path, lines: tuple[str, ...], base: str = "") -> str:
    """Return a hash of the lines, the content of their files, and the base image."""
    result = hashlib.sha256(base.encode())
    for line in lines:
        result.update(b"\0" + line.encode())
    for name in setup_files(folder, lines):
        result.update(b"\1" + name.encode() + b"\0" + read_file(folder / name))
    return result.hexdigest()[:16]


def _is_file_inside(folder: Path, name: str) -> bool:
    path = PurePosixPath(name)
    if ".." in path.parts or path.is_absolute() or not (folder / name).is_file():
        return False
    return (folder / name).resolve().is_relative_to(folder.resolve())
