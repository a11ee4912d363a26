"""What a target is: a place where jobs are done. Everything else in the runner knows only this.

A launch goes facts → plan → start → follow. ``facts`` looks and changes nothing; ``plan`` is pure; ``start``
and ``stop`` are the only ones with effects. ``runs`` and ``files`` also answer for a run that is dead, on
another day and from another terminal, because they read the volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from job.run_record import RunStatus
from runner.errors import did_you_mean, usage
from runner.plan import Plan, TargetState
from runner.request import Request, TargetOptions

if TYPE_CHECKING:
    from runner.console import CliContext


@dataclass(frozen=True)
class LaunchHandle:
    """A job that was started. ``id`` is the target's own name for it: a process, a container, a call.

    ``started`` is in seconds since the epoch. ``identity`` tells the process apart from a later one with the
    same number; ``machine`` is where it is, for an id that means nothing elsewhere.
    """

    run: str
    target: str
    job: str
    id: str
    started: float
    detached: bool = False
    gpus: int = 1
    device: str | None = None
    machine: str = ""
    identity: str = ""
    target_options: TargetOptions = field(default_factory=TargetOptions)  # without secrets


@dataclass(frozen=True)
class RunInfo:
    """What is known of a run. ``status``: starting, running, finished, unfinished, failed, or dead for one
    that ended without a word (killed, or the machine went down); a checkpoint resumes it."""

    run: str
    job: str
    target: str
    status: RunStatus
    alive: bool = False
    gpu: str | None = None
    step: int = 0
    max_steps: int = 0
    loss: float | None = None  # of the newest validation, else of training
    attempts: int = 0
    reason: str | None = None  # why the last attempt ended
    ends: tuple[str, ...] = ()  # why each attempt ended, the oldest first
    started: float | None = None  # the last attempt, seconds since the epoch
    ended: float | None = None
    cost: float | None = None  # US dollars; None where nobody is paid
    folder: str = ""  # on this machine, where it is here
    is_copy: bool = (
        False  # how it stood when it was pulled: the cloud was not asked, or no longer has it
    )
    seen: float | None = (
        None  # of such a copy: when the run was last at work, seconds since the epoch
    )
    estimated_cost: float | None = (
        None  # US dollars for the whole run, by the plan of its first launch
    )
    expected_cost: float | None = (
        None  # the same, by what the run itself measures from its 50th step on
    )
    estimated_seconds: float | None = None  # of the whole run, over all attempts, by that plan
    expected_seconds: float | None = None  # measured after 50 steps
    seconds: float | None = None  # that it trained so far, evaluations and checkpoints included
    result: dict[str, Any] = field(default_factory=dict)  # what an experiment returned

    @property
    def left_by(self) -> str:
        """Why the last attempt of an unfinished run ended; '' for any other."""
        return self.ends[-1] if self.ends and self.status == RunStatus.UNFINISHED else ""


@dataclass(frozen=True)
class VolumeEntry:
    """A file or folder of a volume; ``path`` is relative to the volume, ``size`` in bytes."""

    path: str
    size: int
    modified: float
    is_folder: bool = False


class VolumeFiles(Protocol):
    """Reading one volume of a target. Paths are relative to it, with ``/``."""

    def size(self, path: str) -> int | None:
        """Bytes in the file; None where it isn't there."""
        ...

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """At most ``length`` bytes from ``start``. Raises FileNotFoundError."""
        ...

    def entries(self, path: str = "") -> Iterator[VolumeEntry]:
        """What the folder holds, by name, not what its folders hold. Raises FileNotFoundError."""
        ...


class Target(Protocol):
    """One place. A file under runner/targets/ whose name is the target's and which has
    ``def open_target(env: Environment, checkout: Path) -> Target``."""

    name: str
    poll_interval_s: float  # between two looks at a run that is followed

    def facts(self, request: Request) -> TargetState:
        """Look at what is there. Raises RunnerError where the place can't be used at all."""
        ...

    def plan(self, request: Request, facts: TargetState) -> Plan:
        """``make_plan`` and what only this target knows. Pure."""
        ...

    def start(self, plan: Plan) -> LaunchHandle:
        """Start it; with ``plan.detach`` it outlives this process. Raises RunnerError."""
        ...

    def follow(self, started: LaunchHandle) -> int | None:
        """Wait for what ``start`` of this object started, passing signals on; the job's own exit status,
        128 + n for one that signal n ended. None where it goes on and the user, who was told so, is left alone."""
        ...

    def stop(self, run: str, now: bool = False) -> bool:
        """Have the run write a checkpoint and end, and wait for it; with ``now`` kill it. False where nothing
        of that name is at work."""
        ...

    def runs(self) -> Iterable[RunInfo]:
        """Every run whose last attempt was here."""
        ...

    def state(self, run: str) -> RunInfo | None:
        """How one run stands, without a look at the others; None where its last attempt was not here."""
        ...

    def launched(self, run: str) -> LaunchHandle | None:
        """What the runner started last under this name here."""
        ...

    def output(self, run: str, lines: int) -> list[str]:
        """The last lines that the job printed outside its log: all there is where it died before it had one."""
        ...

    def files(self, volume: str) -> VolumeFiles:
        """The volume ``data``, ``checkpoints`` or ``cache``."""
        ...


@dataclass(frozen=True)
class LocalVolume:
    """``Files`` over ``root``."""

    root: Path

    def size(self, path: str) -> int | None:
        """Bytes in the file; None where it isn't there."""
        try:
            return self._at(path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """At most ``length`` bytes from ``start``."""
        with self._at(path).open("rb") as file:
            file.seek(start)
            return file.read(-1 if length is None else length)

    def entries(self, path: str = "") -> Iterator[VolumeEntry]:
        """What the folder holds, by name."""
        folder = self._at(path)
        for child in sorted(folder.iterdir()):
            try:
                stat = child.lstat()
            except FileNotFoundError:  # a temporary file has its final name by now
                continue
            yield VolumeEntry(
                child.relative_to(self.root).as_posix(), stat.st_size, stat.st_mtime, child.is_dir()
            )

    def _at(self, path: str) -> Path:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise usage(f"{path} leaves the volume; give a path inside it")
        return self.root / path


# Imported at the first use: the implementations import this module, and Modal's is slow to load.
TARGET_MODULES = {
    "host": "runner.targets.host",
    "local": "runner.targets.compose",
    "cloud": "runner.targets.modal.target",
}


# Targets with launch options of their own, and the module that reads them.
OPTION_MODULES = {"cloud": "runner.targets.modal.options"}


def options_from_json(target: str, tree: Mapping[str, Any]) -> TargetOptions:
    """Return the options in a launch record of ``target``. Raises TypeError or ValueError."""
    if target not in OPTION_MODULES:
        return TargetOptions()
    options: TargetOptions = import_module(OPTION_MODULES[target]).options_from_json(tree)
    return options


def target_names() -> list[str]:
    """Return the names that the command line gives the targets."""
    return sorted(TARGET_MODULES)


def open_target(name: str, cli: CliContext, checkout: Path) -> Target:
    """The target ``name``, imported and opened once. Raises RunnerError, exit code 2, for a wrong name."""
    if name not in cli.targets:
        names = target_names()
        if name not in names:
            raise usage(
                f"there is no target '{name}'{did_you_mean(name, names) or '; there are ' + ', '.join(names)}"
            )
        cli.targets[name] = import_module(TARGET_MODULES[name]).open_target(cli, checkout)
    return cli.targets[name]


def all_targets(cli: CliContext, checkout: Path) -> list[Target]:
    """Every target; one that a test put into the environment stands for all of that name."""
    names = (
        sorted({*target_names(), *cli.targets})
        if not cli.only_given_targets
        else sorted(cli.targets)
    )
    return [open_target(name, cli, checkout) for name in names]
