"""What the user wants, checked: the recipe is read and every word understood before a target is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from job.paths import VOLUMES
from job.signature import Value
from runner.errors import did_you_mean, usage
from runner.jobs import Job

if TYPE_CHECKING:
    from job.recipe import Recipe


@dataclass(frozen=True)
class TargetOptions:
    """Options of a launch that depend on the target; the host and Compose have none.

    ``gpu`` names the GPU types to rent; ``max_cost`` is in US dollars over all attempts.
    """

    gpu: str | None = None
    max_cost: float | None = None

    def given(self) -> list[str]:
        """Return the command-line names of the options that are set."""
        names = [option.name for option in fields(self) if getattr(self, option.name)]
        return [name.removesuffix("_s").replace("_", "-") for name in names]

    def updated(self, newer: TargetOptions) -> TargetOptions:
        """Return these options, each one that ``newer`` sets replaced."""
        values = {option.name: getattr(newer, option.name) for option in fields(newer)}
        return replace(self, **{name: value for name, value in values.items() if value})


@dataclass(frozen=True)
class Request:
    """One launch as asked for. Paths are absolute. ``settings`` is the recipe with its overrides."""

    job: Job
    run: str  # '' for the newest one, where nothing can be looked up
    recipe: Path | None = None
    overrides: tuple[str, ...] = ()
    settings: Recipe | None = None
    gpus: int = 1  # processes, one on each GPU
    device: str | None = None
    source: str | None = None
    published: str | None = None  # dataset that prepare downloads, in place of a recipe
    shards: int | None = None
    force: bool = False
    into: Path | None = None
    choices: str | None = None  # a file
    detach: bool = False
    as_json: bool = False
    target_options: TargetOptions = field(default_factory=TargetOptions)
    experiment: Experiment | None = None  # of the user's; then there is no recipe
    command: UserCommand | None = None  # of the user's; then there is no recipe
    hint: str = ""  # a row of the plan: why the run has not the name that it might have been expected to have


# Names that say how a program is run, not what it does.
PROGRAMS = re.compile(r"^(python[0-9.]*|torchrun|accelerate|bash|sh|env|uv|launch|run)$")


@dataclass(frozen=True)
class PersistOption:
    """A path inside the folder whose content lies on a volume, at ``place`` in it; ``{run}`` there is the run."""

    path: str
    volume: str
    place: str

    def of(self, run: str) -> str:
        """Where it lies in the volume."""
        return self.place.replace("{run}", run)


@dataclass(frozen=True)
class UserCommand:
    """``words`` to be run in ``folder``, an absolute path of this machine."""

    words: tuple[str, ...]
    folder: Path
    setup: tuple[str, ...] = ()  # shell lines that add to the image
    requirements: bool = True  # a requirements.txt of the folder's adds to it too
    keep: tuple[PersistOption, ...] = ()
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


def command_from_record(tree: Mapping[str, Any]) -> UserCommand | None:
    """The command in the record of a run; None where it holds none that can be read."""
    try:
        return UserCommand(
            tuple(str(word) for word in tree["words"]),
            Path(tree["folder"]),
            tuple(str(line) for line in tree.get("setup", ())),
            bool(tree.get("requirements", True)),
            tuple(
                PersistOption(str(path), str(volume), str(place))
                for path, volume, place in tree.get("keep", ())
            ),
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
    named = [
        word for word in words if not word.startswith("-") and not PROGRAMS.match(Path(word).name)
    ]
    scripts = [word for word in named if word.endswith((".py", ".sh"))]
    word = (scripts or named or list(words))[0]
    if "-m" in words[:-1] and not scripts:
        word = words[words.index("-m") + 1].rpartition(".")[2]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(word).stem).strip("-._")[:40]
    return f"{folder_name(folder)[:50]}-{stem or 'command'}"


def read_persist_options(words: Sequence[str], folder: Path) -> tuple[PersistOption, ...]:
    """``out=checkpoints`` or ``out=checkpoints/some/place``, each; by default the place is
    ``<folder>/<path>``, so that every run in the folder finds it. Raises RunnerError, exit code 2."""
    keeps = tuple(_read_persist_option(word, folder) for word in words)
    for number, keep in enumerate(keeps):
        for other in keeps[:number]:
            if _inside(keep.path, other.path) or _inside(other.path, keep.path):
                raise usage(
                    f"--persist {other.path} and --persist {keep.path}: one lies in the other; keep one"
                )
    return keeps


def _read_persist_option(word: str, folder: Path) -> PersistOption:
    path, equals, rest = word.partition("=")
    volume, _, place = rest.partition("/")
    if not equals or not path or not volume:
        raise usage(f"--persist {word}: write PATH=VOLUME, for example --persist out=checkpoints")
    if volume not in VOLUMES:
        guess = did_you_mean(volume, VOLUMES) or f"; there are {', '.join(VOLUMES)}"
        raise usage(f"--persist {word}: there is no volume '{volume}'{guess}")
    inner = PurePosixPath(path)
    if inner.is_absolute() or ".." in inner.parts or not inner.parts:
        raise usage(f"--persist {word}: {path} must be a path inside the folder {folder}")
    outer = PurePosixPath(place or f"{folder_name(folder)}/{inner}")
    if outer.is_absolute() or ".." in outer.parts or not outer.parts:
        raise usage(f"--persist {word}: {place} must be a path inside the volume {volume}")
    return PersistOption(inner.as_posix(), volume, outer.as_posix())


def _inside(path: str, other: str) -> bool:
    return PurePosixPath(path).is_relative_to(other)


@dataclass(frozen=True)
class Experiment:
    """``file`` is absolute; ``words`` are key=value as typed; ``arguments`` all values, defaults too."""

    file: Path
    words: tuple[str, ...] = ()
    arguments: tuple[tuple[str, Value], ...] = ()

    def in_words(self) -> str:
        """``train(lr=0.001, steps=100) of sweep_me.py``."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments)
        return f"train({given}) of {self.file.name}"

    def as_record(self) -> dict[str, Any]:
        """For the run's record; ``from_record`` reads it again."""
        return {"file": str(self.file), "words": list(self.words)}


def experiment_from_record(tree: Mapping[str, Any]) -> tuple[Path, tuple[str, ...]] | None:
    """The file and the words of a run's last launch; None where it was no experiment's."""
    try:
        found = tree["experiment"]
        return Path(found["file"]), tuple(str(word) for word in found["words"])
    except (LookupError, TypeError):
        return None


def smoke_overrides(steps: int) -> dict[str, Any]:
    """The settings that end it after so many steps, whatever schedule the recipe has."""
    return {
        "train.max_steps": steps,
        "train.warmup_steps": 0,
        "train.decay_steps": None,
        "train.batch_schedule": [],
        "train.window_schedule": [],
        "train.eval_every": steps,
        "train.checkpoint_every": steps,
    }


def as_arguments(settings: dict[str, Any]) -> tuple[str, ...]:
    """As they are typed."""
    return tuple(f"{key}={'null' if value is None else value}" for key, value in settings.items())
