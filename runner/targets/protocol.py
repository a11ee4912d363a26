"""What a target is: a place where jobs are done. Everything else in the runner knows only this.

A launch goes facts → plan → start → follow. ``facts`` looks and changes nothing; ``plan`` is pure; ``start``
and ``stop`` are the only ones with effects. ``runs`` and ``files`` also answer for a run that is dead, on
another day and from another terminal, because they read the volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from runner.plans.planned import Facts, Plan
from runner.requests.request import Request


@dataclass(frozen=True)
class Started:
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
    more: tuple[tuple[str, str], ...] = ()  # options that only this target has, for a resume; no secrets


@dataclass(frozen=True)
class RunState:
    """What is known of a run. ``status``: starting, running, finished, unfinished, failed, or dead for one
    that ended without a word (killed, or the machine went down); a checkpoint resumes it."""

    run: str
    job: str
    target: str
    status: str
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
    is_copy: bool = False  # how it stood when it was pulled: the cloud was not asked, or no longer has it
    seen: float | None = None  # of such a copy: when the run was last at work, seconds since the epoch
    estimated_cost: float | None = None  # US dollars for the whole run, by the plan of its first launch
    expected_cost: float | None = None  # the same, by what the run itself measures from its 50th step on
    estimated_seconds: float | None = None  # of the whole run, over all attempts, by that plan
    expected_seconds: float | None = None  # measured after 50 steps
    seconds: float | None = None  # that it trained so far, evaluations and checkpoints included
    result: dict[str, Any] = field(default_factory=dict)  # what an experiment returned

    @property
    def left_by(self) -> str:
        """Why the last attempt of an unfinished run ended; '' for any other."""
        return self.ends[-1] if self.ends and self.status == "unfinished" else ""


@dataclass(frozen=True)
class Entry:
    """A file or folder of a volume; ``path`` is relative to the volume, ``size`` in bytes."""

    path: str
    size: int
    modified: float
    is_folder: bool = False


class Files(Protocol):
    """Reading one volume of a target. Paths are relative to it, with ``/``."""

    def size(self, path: str) -> int | None:
        """Bytes in the file; None where it isn't there."""
        ...

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """At most ``length`` bytes from ``start``. Raises FileNotFoundError."""
        ...

    def entries(self, path: str = "") -> Iterator[Entry]:
        """What the folder holds, by name, not what its folders hold. Raises FileNotFoundError."""
        ...


class Target(Protocol):
    """One place. A file under runner/targets/ whose name is the target's and which has
    ``def open_target(env: Environment, checkout: Path) -> Target``."""

    name: str
    look_seconds: float  # between two looks at a run that is followed

    def facts(self, request: Request) -> Facts:
        """Look at what is there. Raises RunnerError where the place can't be used at all."""
        ...

    def plan(self, request: Request, facts: Facts) -> Plan:
        """``make_plan`` and what only this target knows. Pure."""
        ...

    def start(self, plan: Plan) -> Started:
        """Start it; with ``plan.detach`` it outlives this process. Raises RunnerError."""
        ...

    def follow(self, started: Started) -> int | None:
        """Wait for what ``start`` of this object started, passing signals on; the job's own exit status,
        128 + n for one that signal n ended. None where it goes on and the user, who was told so, is left alone."""
        ...

    def stop(self, run: str, now: bool = False) -> bool:
        """Have the run write a checkpoint and end, and wait for it; with ``now`` kill it. False where nothing
        of that name is at work."""
        ...

    def runs(self) -> Iterable[RunState]:
        """Every run whose last attempt was here."""
        ...

    def state(self, run: str) -> RunState | None:
        """How one run stands, without a look at the others; None where its last attempt was not here."""
        ...

    def launched(self, run: str) -> Started | None:
        """What the runner started last under this name here."""
        ...

    def output(self, run: str, lines: int) -> list[str]:
        """The last lines that the job printed outside its log: all there is where it died before it had one."""
        ...

    def files(self, volume: str) -> Files:
        """The volume ``data``, ``checkpoints`` or ``cache``."""
        ...
