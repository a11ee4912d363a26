"""Read a Git repository without its configuration, which may name programs to run.

``core.fsmonitor``, hooks, filters and remotes of a cloned or unpacked folder are another person's
code, and a plan must not run it. So Git gets a temporary directory in place of ``.git``, with the
repository's index and objects. This also works in a repository of another user, which Git refuses.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

TIMEOUT_S = 60.0
OPTIONS = (
    *("-c", "core.fsmonitor=false"),  # the user's own configuration may set it
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.quotePath=false"),
)


@dataclass(frozen=True)
class Repository:
    """A work tree and its ``.git`` directory."""

    root: Path
    git_dir: Path

    @property
    def common_dir(self) -> Path:
        """Return the directory of the main work tree, with objects and refs."""
        return (self.git_dir / _first_line(self.git_dir / "commondir")).resolve()

    @property
    def exclude_file(self) -> Path:
        """Return the file of ignore rules that are not committed."""
        return self.common_dir / "info" / "exclude"

    def commit(self) -> str | None:
        """Return the hash of HEAD; None without a commit."""
        reference = _first_line(self.git_dir / "HEAD")
        for _ in range(5):  # symbolic references
            if not reference.startswith("ref: "):
                return reference if _is_hash(reference) else None
            name = reference.removeprefix("ref: ")
            if ".." in Path(name).parts or Path(name).is_absolute():
                return None
            for folder in (self.git_dir, self.common_dir):
                if line := _first_line(folder / name):
                    reference = line
                    break
            else:
                return self._packed(name)
        return None

    def is_dirty(self) -> bool:
        """Return True if a tracked file differs from HEAD."""
        answer = self.run(self.root, "status", "--porcelain", "--untracked-files=no")
        return answer is not None and bool(answer.stdout)

    def run(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes] | None:
        """Run a Git command that reads; None if Git is missing or does not answer."""
        with _clean_git_dir(self) as git_dir:
            variables = {
                "GIT_DIR": str(git_dir),
                "GIT_WORK_TREE": str(self.root),
                "GIT_OBJECT_DIRECTORY": str(self.common_dir / "objects"),
                "GIT_ALLOW_PROTOCOL": "none",  # never fetch a missing object
                "GIT_NO_LAZY_FETCH": "1",
                "LC_ALL": "C",
            }
            if (index := self.git_dir / "index").is_file():
                variables["GIT_INDEX_FILE"] = str(index)
            inherited = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
            try:
                return subprocess.run(
                    ["git", "--no-optional-locks", *OPTIONS, *self._excludes(), *arguments],
                    cwd=folder,
                    env={**inherited, **variables},
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=TIMEOUT_S,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired):
                return None

    def _excludes(self) -> tuple[str, ...]:
        """Return the option for the repository's own core.excludesFile, a list of patterns."""
        config = self.common_dir / "config"
        command = ["git", "config", "--file", str(config), "--type=path", "core.excludesFile"]
        if not config.is_file():
            return ()
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
        path = os.fsdecode(done.stdout).strip()
        return ("-c", f"core.excludesFile={path}") if Path(path).is_file() else ()

    def _packed(self, name: str) -> str | None:
        for line in _lines(self.common_dir / "packed-refs"):
            value, _, reference = line.partition(" ")
            if reference == name and _is_hash(value):
                return value
        return None


def find_repository(folder: Path) -> Repository | None:
    """Return the repository that contains ``folder``; None outside of one."""
    folder = folder.resolve()
    for root in (folder, *folder.parents):
        git = root / ".git"
        if (git / "HEAD").is_file():
            return Repository(root, git)
        if git.is_file():  # a submodule, or a second work tree
            target = _first_line(git).removeprefix("gitdir: ")
            git_dir = (root / target).resolve()
            return Repository(root, git_dir) if (git_dir / "HEAD").is_file() else None
    return None


@contextmanager
def _clean_git_dir(repository: Repository) -> Iterator[Path]:
    with TemporaryDirectory(prefix="gpt-runner-git-") as temporary:
        git_dir = Path(temporary)
        (git_dir / "refs").mkdir()
        (git_dir / "info").mkdir()
        (git_dir / "HEAD").write_text(f"{repository.commit() or 'ref: refs/heads/main'}\n")
        rules = "\n".join(_lines(repository.exclude_file))
        (git_dir / "info" / "exclude").write_text(rules, "utf-8", "surrogateescape")
        yield git_dir


def _lines(path: Path) -> list[str]:
    """Return the lines of a regular file; none if it is missing or unreadable."""
    try:
        if not path.is_file():
            return []
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except (OSError, ValueError):
        return []


def _first_line(path: Path) -> str:
    return (_lines(path) or [""])[0].strip()


def _is_hash(text: str) -> bool:
    return len(text) in (40, 64) and all(character in "0123456789abcdef" for character in text)
