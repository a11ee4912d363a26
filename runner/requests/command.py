"""A command of the user's in a folder of theirs: what was asked for, as a value that a record can hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from job.locations import VOLUMES
from runner.errors import did_you_mean, usage

# Names that say how a program is run, not what it does.
PROGRAMS = re.compile(r"^(python[0-9.]*|torchrun|accelerate|bash|sh|env|uv|launch|run)$")


@dataclass(frozen=True)
class Keep:
    """A path inside the folder whose content lies on a volume, at ``place`` in it; ``{run}`` there is the run."""

    path: str
    volume: str
    place: str

    def of(self, run: str) -> str:
        """Where it lies in the volume."""
        return self.place.replace("{run}", run)


@dataclass(frozen=True)
class Command:
    """``words`` to be run in ``folder``, an absolute path of this machine."""

    words: tuple[str, ...]
    folder: Path
    setup: tuple[str, ...] = ()  # shell lines that add to the image
    requirements: bool = True  # a requirements.txt of the folder's adds to it too
    keep: tuple[Keep, ...] = ()
    resume_with: str = ""  # words for the attempts after the first
    resume_if: str | None = None  # ... where there is such a file

    def as_record(self) -> dict[str, Any]:
        """For the run's record; ``from_record`` reads it again."""
        return {
            "words": list(self.words),
            "folder": str(self.folder),
            "setup": list(self.setup),
            "requirements": self.requirements,
            "keep": [[keep.path, keep.volume, keep.place] for keep in self.keep],
            "resume_with": self.resume_with,
            "resume_if": self.resume_if,
        }


def from_record(tree: Mapping[str, Any]) -> Command | None:
    """The command in the record of a run; None where it holds none that can be read."""
    try:
        return Command(
            tuple(str(word) for word in tree["words"]),
            Path(tree["folder"]),
            tuple(str(line) for line in tree.get("setup", ())),
            bool(tree.get("requirements", True)),
            tuple(Keep(str(path), str(volume), str(place)) for path, volume, place in tree.get("keep", ())),
            str(tree.get("resume_with") or ""),
            str(tree["resume_if"]) if tree.get("resume_if") else None,
        )
    except (LookupError, TypeError, ValueError):
        return None


def folder_name(folder: Path) -> str:
    """The folder's name in letters that a run and a volume can have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip("-._") or "folder"


def run_name(folder: Path, words: Sequence[str]) -> str:
    """A name for the run: the folder's and that of the script, `nanoGPT-train`."""
    named = [word for word in words if not word.startswith("-") and not PROGRAMS.match(Path(word).name)]
    scripts = [word for word in named if word.endswith((".py", ".sh"))]
    word = (scripts or named or list(words))[0]
    if "-m" in words[:-1] and not scripts:
        word = words[words.index("-m") + 1].rpartition(".")[2]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(word).stem).strip("-._")[:40]
    return f"{folder_name(folder)[:50]}-{stem or 'command'}"


def read_keeps(words: Sequence[str], folder: Path) -> tuple[Keep, ...]:
    """``out=checkpoints`` or ``out=checkpoints/some/place``, each; by default the place is
    ``<folder>/<path>``, so that every run in the folder finds it. Raises RunnerError, exit code 2."""
    keeps = tuple(_read_keep(word, folder) for word in words)
    for number, keep in enumerate(keeps):
        for other in keeps[:number]:
            if _inside(keep.path, other.path) or _inside(other.path, keep.path):
                raise usage(f"--keep {other.path} and --keep {keep.path}: one lies in the other; keep one")
    return keeps


def _read_keep(word: str, folder: Path) -> Keep:
    path, equals, rest = word.partition("=")
    volume, _, place = rest.partition("/")
    if not equals or not path or not volume:
        raise usage(f"--keep {word}: write PATH=VOLUME, for example --keep out=checkpoints")
    if volume not in VOLUMES:
        guess = did_you_mean(volume, VOLUMES) or f"; there are {', '.join(VOLUMES)}"
        raise usage(f"--keep {word}: there is no volume '{volume}'{guess}")
    inner = PurePosixPath(path)
    if inner.is_absolute() or ".." in inner.parts or not inner.parts:
        raise usage(f"--keep {word}: {path} must be a path inside the folder {folder}")
    outer = PurePosixPath(place or f"{folder_name(folder)}/{inner}")
    if outer.is_absolute() or ".." in outer.parts or not outer.parts:
        raise usage(f"--keep {word}: {place} must be a path inside the volume {volume}")
    return Keep(inner.as_posix(), volume, outer.as_posix())


def _inside(path: str, other: str) -> bool:
    return PurePosixPath(path).is_relative_to(other)
