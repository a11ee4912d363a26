"""The contract between the runner and a target: protocols, and the values that they exchange.

A launch goes ``connect`` -> ``inspect`` -> ``plan`` -> ``start`` -> ``follow``. ``connect`` and
``inspect`` change nothing, ``plan`` is pure; only ``start`` and ``stop`` have effects. `RunSource`
reads runs from their volume, so it also answers for runs that were lost and for runs that another
terminal started. `open_target` returns a target by its name.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from job.files import read_file, write_atomically
from job.paths import VolumePaths
from job.run_record import RunStatus
from job.typed_json import convert
from runner.errors import did_you_mean, usage
from runner.plan import Plan, TargetState
from runner.project import volumes
from runner.request import CommandRequest, Request, TargetOptions


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
    metadata: dict[str, Any] = field(
        default_factory=dict
    )  # recipe, tags: until the run records them

    @classmethod
    def of(cls, plan: Plan, target: str, id: str, **target_values: Any) -> LaunchHandle:
        """Return the handle of a launch of ``plan``; ``target_values`` replace the defaults."""
        values: dict[str, Any] = {
            "started": time.time(),
            "detached": plan.detach,
            "gpus": plan.process.gpus,
            "device": plan.process.device,
            "target_options": plan.target_options,
            "metadata": plan.metadata,
        }
        return cls(plan.run, target, plan.job, id, **values | target_values)


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
    trackers: dict[str, str] = field(default_factory=dict)  # the run's page in each
    queue_position: int | None = None  # 1 for the next one
    tags: tuple[str, ...] = ()
    recipe: str = ""  # its name

    @property
    def unfinished_reason(self) -> str:
        """Return why the last attempt of an unfinished run ended; '' for other runs."""
        return (
            self.end_reasons[-1] if self.end_reasons and self.status == RunStatus.UNFINISHED else ""
        )


@dataclass(frozen=True)
class RunCost:
    """US dollars of a run over a time, by its record and by the target's bill."""

    run: str  # '' for what is not a run
    recorded: float
    billed: float


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

    To add a target: one module with ``open_target``, one line in TARGET_MODULES. The methods with
    a body are those of a target that needs no account and costs nothing.
    """

    volumes: VolumePaths  # the volumes' folders on this machine
    bills: bool = False  # its machines cost money
    has_remote_volumes: bool  # they are not folders of this machine; `pull` and `push` copy
    default_parallel_trials: int = 1  # trials of a sweep that run at once

    def is_configured(self) -> bool:
        """Return True if the account that the target needs is set up on this machine."""
        return True

    def check_configured(self) -> None:
        """Raise RunnerError, with the command that sets the account up, if it is not."""
        return None

    def connect(self) -> None:
        """Start the requests of every launch, in the background while the recipe is read."""
        return None

    def mirror(self) -> RunSource | None:
        """Return the pulled copies of this target's runs.

        None if its volumes are on this machine.
        """
        return None

    def inspect(self, request: Request) -> TargetState:
        """Return what a plan needs to know.

        Raises RunnerError if the target can't be used at all.
        """
        ...

    def check_program(self, request: CommandRequest) -> None:
        """Raise RunnerError, exit status 2, if the target is known to lack the program."""
        return None

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

    def costs(self, since: float) -> list[RunCost]:
        """Return the cost of each run since then; [] on a target that does not bill."""
        return []

    def remove(self, path: str) -> None:
        """Delete a folder of the checkpoints volume.

        If it is interrupted, no part of the folder keeps its name. Raises RunnerError.
        """
        ...

    def write_record(self, run: str, name: str, text: str) -> None:
        """Write a small file into the run's folder: a request for its trainer, its tags."""
        ...

    def open_shell(
        self, request: CommandRequest, is_command: bool, idle_s: float, yes: bool
    ) -> int:
        """Run the request's command at the terminal and return its exit status.

        It is a shell, to which the same request attaches again, unless ``is_command``.
        """
        ...

    def enter(self, run: str, argv: Sequence[str]) -> int:
        """Run ``argv`` at the terminal inside the active run; return their exit status."""
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
        return read_file(self._resolve(path), start, length)

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
    "remote": "runner.targets.remote.target",  # one target for each box: remote:BOX
}
BOXES_FILE = "remote_boxes"  # in the cache volume: the boxes that were used, one a line


# Targets with launch options of their own: the module and the name of their type.
OPTION_TYPES = {"cloud": ("runner.targets.modal.options", "ModalOptions")}


def options_from_json(target: str, tree: Mapping[str, Any]) -> TargetOptions:
    """Return the options in a launch record of ``target``. Raises ValueError."""
    module, name = OPTION_TYPES.get(target, ("runner.request", "TargetOptions"))
    options: TargetOptions = convert(tree, getattr(import_module(module), name))
    return options


class OpenTargets(Protocol):
    """The part of the command line's context that holds the targets."""

    targets: dict[str, Target]
    only_given_targets: bool


def target_names(checkout: Path) -> list[str]:
    """Return the names of the targets, sorted, with the boxes that were used."""
    boxes = [f"remote:{box}" for box in known_boxes(checkout)]
    return sorted([*(name for name in TARGET_MODULES if name != "remote"), *boxes])


def known_boxes(checkout: Path) -> list[str]:
    """Return the boxes that were used from this machine."""
    try:
        return read_file(volumes(checkout, {}).cache / BOXES_FILE).decode().split()
    except (OSError, UnicodeDecodeError):
        return []


def remember_box(checkout: Path, box: str) -> None:
    """Record ``box``, so that commands that look for runs query it too."""
    if box not in (known := known_boxes(checkout)):
        path = volumes(checkout, {}).cache / BOXES_FILE
        write_atomically(path, "".join(f"{name}\n" for name in [*known, box]))


def open_target(name: str, cli: OpenTargets, checkout: Path) -> Target:
    """Return the target ``name``, opened once.

    Raises RunnerError, exit status 2, for an unknown name.
    """
    if name not in cli.targets:
        kind, colon, instance = name.partition(":")
        names = target_names(checkout)
        if name not in names and not (kind == "remote" and instance):
            hint = did_you_mean(name, names) or f"; the targets are {', '.join(names)}, remote:BOX"
            raise usage(f"unknown target '{name}'{hint}")
        module = import_module(TARGET_MODULES[kind])
        arguments = (instance,) if colon else ()
        cli.targets[name] = module.open_target(cli, checkout, *arguments)
    return cli.targets[name]


def all_targets(cli: OpenTargets, checkout: Path) -> list[Target]:
    """Return every target; those that a test put into ``cli`` replace the real ones."""
    known = set() if cli.only_given_targets else {*target_names(checkout)}
    return [open_target(name, cli, checkout) for name in sorted({*known, *cli.targets})]


def remote_targets(cli: OpenTargets, checkout: Path) -> list[Target]:
    """Return the targets whose volumes are not on this machine."""
    return [target for target in all_targets(cli, checkout) if target.has_remote_volumes]
