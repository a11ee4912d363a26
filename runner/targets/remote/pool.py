"""Several boxes as one target, ``remote:a,b``: a new run goes to the least busy box."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from runner.errors import usage
from runner.plan import Plan, TargetState
from runner.planning.plan import make_plan
from runner.request import CommandRequest, Request
from runner.runs.volume import listing
from runner.target import LaunchHandle, RunInfo, Target, VolumeEntry, VolumeFiles
from runner.targets.blocks import BlockFiles
from runner.targets.remote.target import RemoteTarget


class BoxPool(Target):
    """Runs jobs on several boxes, for a sweep."""

    poll_interval_s = 1.0
    has_remote_volumes = True

    def __init__(self, boxes: Sequence[RemoteTarget]) -> None:
        self.boxes = boxes
        self.name = f"remote:{','.join(box.box for box in boxes)}"
        self.volumes = boxes[0].volumes
        self.default_parallel_trials = len(boxes)
        self._box_of: dict[str, RemoteTarget] = {}
        self._ended: set[str] = set()
        self._lock = threading.Lock()

    def box_of(self, run: str) -> RemoteTarget | None:
        """Return the box that has the run; None if none has it."""
        with self._lock:
            if run not in self._box_of:
                owner = next((box for box in self.boxes if box.launched(run) is not None), None)
                if owner is None:
                    return None
                self._box_of[run] = owner
            return self._box_of[run]

    def inspect(self, request: Request) -> TargetState:
        """Return the state of the box that has the run or will get it."""
        box = self.box_of(request.run)
        if box is None:
            with self._lock:
                active = self._box_of.keys() - self._ended
                assigned = [self._box_of[run] for run in active]
                box = min(self.boxes, key=assigned.count)
                if request.job.writes_run:
                    self._box_of[request.run] = box
        self._ended.discard(request.run)
        return box.inspect(request)

    def plan(self, request: Request, state: TargetState) -> Plan:
        """Return ``make_plan`` without additions; its target is the box."""
        return make_plan(request, state)

    def start(self, plan: Plan) -> LaunchHandle:
        """Start the job on the box of the plan."""
        return self._named(plan.target).start(plan)

    def follow(self, started: LaunchHandle) -> int | None:
        """Follow the job on its box."""
        return self._named(started.target).follow(started)

    def open_shell(
        self, request: CommandRequest, is_command: bool, idle_s: float, yes: bool
    ) -> int:
        """Open a shell on the first box."""
        return self.boxes[0].open_shell(request, is_command, idle_s, yes)

    def enter(self, run: str, argv: Sequence[str]) -> int:
        """Run ``argv`` inside the run, on its box."""
        return self._box(run).enter(run, argv)

    def stop(self, run: str, force: bool = False) -> bool:
        """Stop the run on its box."""
        return self._box(run).stop(run, force)

    def remove(self, path: str) -> None:
        """Delete a folder of the checkpoints volume of the run's box."""
        if (box := self.box_of(path.split("/")[0])) is not None:
            box.remove(path)

    def write_record(self, run: str, name: str, text: str) -> None:
        """Write a small file into the run's folder on its box."""
        if (box := self.box_of(run)) is not None:
            box.write_record(run, name, text)

    def runs(self) -> Iterable[RunInfo]:
        """Return the runs of all boxes."""
        return [state for box in self.boxes for state in box.runs()]

    def state(self, run: str) -> RunInfo | None:
        """Return the state of one run; None if no box has it."""
        state = self._box(run).state(run)
        if state is not None and not state.alive:
            self._ended.add(run)
        return state

    def launched(self, run: str) -> LaunchHandle | None:
        """Return the last launch of the run."""
        return self._box(run).launched(run)

    def output(self, run: str, lines: int) -> list[str]:
        """Return the last lines that the job printed."""
        return self._box(run).output(run, lines)

    def files(self, volume: str) -> VolumeFiles:
        """Return the volume of all boxes; a path begins with its run."""
        return PoolFiles(self, volume)

    def block_files(self, volume: str, create: bool = False) -> BlockFiles:
        """Raise RunnerError: each box has volumes of its own."""
        raise usage(f"give one box, such as --target {self.boxes[0].name}")

    def _box(self, run: str) -> RemoteTarget:
        """Return the box that has the run, or any one, which answers that it does not."""
        return self.box_of(run) or self.boxes[0]

    def _named(self, target: str) -> RemoteTarget:
        return next(box for box in self.boxes if box.name == target)


@dataclass(frozen=True)
class PoolFiles:
    """The checkpoints of all boxes as one volume."""

    pool: BoxPool
    volume: str

    def _of(self, path: str) -> VolumeFiles:
        box = self.pool.box_of(path.strip("/").split("/")[0])
        if box is None:
            raise FileNotFoundError(path)
        return box.files(self.volume)

    def size(self, path: str) -> int | None:
        """Return the file's size in bytes; None if it does not exist."""
        try:
            return self._of(path).size(path)
        except FileNotFoundError:
            return None

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Return at most ``length`` bytes from ``start``. Raises FileNotFoundError."""
        return self._of(path).read(path, start, length)

    def entries(self, path: str = "") -> Iterator[VolumeEntry]:
        """Yield what the folder contains, or the runs of all boxes."""
        if path.strip("/"):
            yield from self._of(path).entries(path)
            return
        # A box without an image yet has no runs.
        runs = [entry for box in self.pool.boxes for entry in listing(box.files(self.volume))]
        yield from sorted(runs, key=lambda entry: entry.path)
