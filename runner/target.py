"""The contract between the runner and a target: protocols, capabilities and the values they
exchange.

A launch goes ``inspect`` -> ``plan`` -> ``start`` -> ``follow``. ``inspect`` changes nothing,
``plan`` is pure; only ``start`` and ``stop`` have effects. `RunSource` reads runs from their
volume, so it also answers for runs that were lost and for runs that another terminal started.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from job.paths import VolumePaths
from job.run_record import RunStatus
from runner.errors import did_you_mean, usage
from runner.plan import Plan, TargetState
from runner.request import Request, TargetOptions


@dataclass(frozen=True)
class LaunchHandle:
    """A started job. ``launch.json`` in the run's folder holds it."""

    run: str
    target: str
    job: str
    id: str  # the target's own: a process, a container, a function call
    started: float  # seconds since the epoch
    detached: bool = False
    gpus: int = 1
    device: str | None = None
    location: str = ""  # the machine or app that the id belongs to
    identity: str = ""  # distinguishes the process from a later one with the same number
    target_options: TargetOptions = field(default_factory=TargetOptions)  # without secrets


@dataclass(frozen=True)
class RunInfo:
    """The state of a run. Times are seconds since the epoch, costs US dollars."""

    run: str
    job: str
    target: str  # of the last attempt
    status: RunStatus
    alive: bool = False
    gpu: str | None = None
    step: int = 0
    max_steps: int = 0
    loss: float | None = None  # of the newest validation, else of training
    attempts: int = 0
    reason: str | None = None  # why the last attempt ended
    end_reasons: tuple[str, ...] = ()  # of all attempts, oldest first
    started: float | None = None  # the last attempt
    ended: float | None = None
    cost: float | None = None  # None on a target that does not bill
    folder: str = ""  # on this machine
    is_copy: bool = False  # the pulled copy of a run whose target does not answer for it
    last_seen: float | None = None  # when the run of such a copy was last active
    estimated_cost: float | None = None  # of the whole run, from the plan of its first launch
    estimated_seconds: float | None = None
    expected_cost: float | None = None  # of the whole run, from the speed measured after 50 steps
    expected_seconds: float | None = None
    seconds: float | None = None  # trained so far, evaluations and checkpoints included
    result: dict[str, Any] = field(default_factory=dict)  # of an experiment

    @property
    def unfinished_reason(self) -> str:
        """Return why the last attempt of an unfinished run ended; '' for other runs."""
        return (
            self.end_reasons[-1] if self.end_reasons and self.status == RunStatus.UNFINISHED else ""
        )


@dataclass(frozen=True)
class VolumeEntry:
    """A file or folder of a volume; ``path`` is relative to the volume, ``size`` in bytes."""

    path: str
    size: int
    modified: float
    is_folder: bool = False


class VolumeFiles(Protocol):
    """Read one volume of a target. Paths are relative to the volume and use ``/``."""

    def size(self, path: str) -> int | None:
        """Return the file's size in bytes; None if it does not exist."""
        ...

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Return at most ``length`` bytes from ``start``. Raises FileNotFoundError."""
        ...

    def entries(self, path: str = "") -> Iterator[VolumeEntry]:
        """Yield what the folder contains, sorted by name. Raises FileNotFoundError."""
        ...


class RunSource(Protocol):
    """Read the runs of one target, or the copies of them that were pulled."""

    name: str
    poll_interval_s: float  # between two polls of a run that is followed

    def runs(self) -> Iterable[RunInfo]:
        """Return every run whose last attempt was on this target.

        Raises RunnerError if it is offline.
        """
        ...

    def state(self, run: str) -> RunInfo | None:
        """Return the state of one run; None if its last attempt was not on this target."""
        ...

    def launched(self, run: str) -> LaunchHandle | None:
        """Return the last launch of the run on this target."""
        ...

    def output(self, run: str, lines: int) -> list[str]:
        """Return the last lines that the job printed outside its log."""
        ...

    def files(self, volume: str) -> VolumeFiles:
        """Return the volume ``data``, ``checkpoints`` or ``cache``."""
        ...


class Target(RunSource, Protocol):
    """Run jobs in one place.

    To add a target: one module with ``open_target``, one line in TARGET_MODULES.
    """

    volumes: VolumePaths  # the volumes' folders on this machine
    bills: bool  # its machines cost money
    has_remote_volumes: (
        bool  # its volumes are not the folders of this machine; `pull` and `push` copy
    )
    default_parallel_trials: int  # trials of a sweep that run at once

    def is_configured(self) -> bool:
        """Return True if the account that the target needs is set up on this machine."""
        ...

    def check_configured(self) -> None:
        """Raise RunnerError, with the command that sets the account up, if it is not."""
        ...

    def mirror(self) -> RunSource | None:
        """Return the pulled copies of this target's runs.

        None if its volumes are on this machine.
        """
        ...

    def inspect(self, request: Request) -> TargetState:
        """Return what a plan needs to know.

        Raises RunnerError if the target can't be used at all.
        """
        ...

    def plan(self, request: Request, state: TargetState) -> Plan:
        """Return ``make_plan`` with the target's own additions. Pure."""
        ...

    def start(self, plan: Plan) -> LaunchHandle:
        """Start the job; with ``plan.detach`` it outlives this process. Raises RunnerError."""
        ...

    def follow(self, started: LaunchHandle) -> int | None:
        """Wait for a job that this object started, passing signals on to it.

        Returns the job's exit status, 128 + n if signal n ended it; None if the user left it
        running.
        """
        ...

    def stop(self, run: str, force: bool = False) -> bool:
        """Let the run write a checkpoint and end, and wait.

        ``force`` kills it. False if it is not active.
        """
        ...


@dataclass(frozen=True)
class LocalVolume:
    """`VolumeFiles` of a folder on this machine."""

    root: Path

    def size(self, path: str) -> int | None:
        """Return the file's size in bytes; None if it does not exist."""
        try:
            return self._resolve(path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Return at most ``length`` bytes from ``start``. Raises FileNotFoundError."""
        with self._resolve(path).open("rb") as file:
            file.seek(start)
            return file.read(-1 if length is None else length)

    def entries(self, path: str = "") -> Iterator[VolumeEntry]:
        """Yield what the folder contains, sorted by name. Raises FileNotFoundError."""
        for child in sorted(self._resolve(path).iterdir()):
            try:
                stat = child.lstat()
            except FileNotFoundError:  # a temporary file that was renamed since
                continue
            yield VolumeEntry(
                child.relative_to(self.root).as_posix(), stat.st_size, stat.st_mtime, child.is_dir()
            )

    def _resolve(self, path: str) -> Path:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise usage(f"{path} is outside the volume; give a path inside it")
        return self.root / path


# Imported by name at the first use: the implementations import this module, and modal loads slowly.
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


class OpenTargets(Protocol):
    """The part of the command line's context that holds the targets."""

    targets: dict[str, Target]
    only_given_targets: bool


def target_names() -> list[str]:
    """Return the names of the targets, sorted."""
    return sorted(TARGET_MODULES)


def open_target(name: str, cli: OpenTargets, checkout: Path) -> Target:
    """Return the target ``name``, opened once.

    Raises RunnerError, exit code 2, for an unknown name.
    """
    if name not in cli.targets:
        names = target_names()
        if name not in names:
            hint = did_you_mean(name, names) or f"; the targets are {', '.join(names)}"
            raise usage(f"unknown target '{name}'{hint}")
        cli.targets[name] = import_module(TARGET_MODULES[name]).open_target(cli, checkout)
    return cli.targets[name]


def all_targets(cli: OpenTargets, checkout: Path) -> list[Target]:
    """Return every target; those that a test put into ``cli`` replace the real ones."""
    names = set(cli.targets) if cli.only_given_targets else {*target_names(), *cli.targets}
    return [open_target(name, cli, checkout) for name in sorted(names)]


def remote_targets(cli: OpenTargets, checkout: Path) -> list[Target]:
    """Return the targets whose volumes are not on this machine."""
    return [target for target in all_targets(cli, checkout) if target.has_remote_volumes]
