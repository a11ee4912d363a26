"""A target that starts no job, for tests of the commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from job.paths import VolumePaths
from job.run_record import REQUEST_NAME, read_record
from runner.plan import FolderState, JobEnvironment, Plan, PriorRun, TargetState, Volume
from runner.planning.plan import make_plan, with_rows
from runner.request import CommandRequest, Request
from runner.runs.store import newest_step, read_launch
from runner.target import LaunchHandle, LocalVolume, RunCost, RunInfo, RunSource


def change_state(state: TargetState, **values: Any) -> TargetState:
    """Return the state with changed values; fields of its parts are given by name."""
    parts = {"environment": JobEnvironment, "run": PriorRun, "folder": FolderState}
    for name, value in values.items():
        owner = next((part for part, kind in parts.items() if name in kind.__annotations__), None)
        if owner is None:
            state = replace(state, **{name: value})
        else:
            part = getattr(state, owner) or FolderState("")
            state = replace(state, **{owner: replace(part, **{name: value})})
    return state


@dataclass
class FakeTarget:
    """A target whose answers are its fields; ``did`` records the calls."""

    checkout: Path
    name: str = "host"
    poll_interval_s: float = 0.01
    code: int | None = 0  # the job's exit status; None if the user detaches
    price: str | None = None
    states: list[RunInfo] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)
    has: dict[str, object] = field(default_factory=dict)  # changes of the state
    did: list[str] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    last: LaunchHandle | None = None
    default_parallel_trials: int = 1
    copies: RunSource | None = None
    charged: list[RunCost] = field(default_factory=list)
    answer: dict[str, object] = field(default_factory=dict)  # the trainer's answer to a request

    def __post_init__(self) -> None:
        self.volumes = VolumePaths.under(self.checkout / "volumes")
        self.bills = self.has_remote_volumes = self.name == "cloud"

    def is_configured(self) -> bool:
        return True

    def check_configured(self) -> None:
        pass

    def connect(self) -> None:
        pass

    def mirror(self) -> RunSource | None:
        return self.copies

    def check_program(self, request: CommandRequest) -> None:
        pass

    def inspect(self, request: Request) -> TargetState:
        volumes = self.checkout / "volumes"
        folder = volumes / "checkpoints" / request.run
        state = TargetState(
            self.name,
            str(self.checkout),
            JobEnvironment(
                "/workspace",
                tuple(
                    Volume(name, str(volumes / name), f"/vol/{name}")
                    for name in ("data", "checkpoints", "cache")
                ),
            ),
            PriorRun(read_record(folder), step=newest_step(folder)),
        )
        return change_state(state, **self.has)

    def plan(self, request: Request, state: TargetState) -> Plan:
        plan = with_rows(make_plan(request, state), price=self.price)
        self.plans.append(plan)
        return plan

    def start(self, plan: Plan) -> LaunchHandle:
        self.did.append(f"start {plan.run}")
        self.last = LaunchHandle(plan.run, self.name, plan.job, "1", 100.0, plan.detach)
        return self.last

    def follow(self, started: LaunchHandle) -> int | None:
        self.did.append(f"follow {started.run}")
        return self.code

    def stop(self, run: str, force: bool = False) -> bool:
        self.did.append(f"stop {run}{' now' if force else ''}")
        return any(state.run == run for state in self.states)

    def costs(self, since: float) -> list[RunCost]:
        return self.charged

    def remove(self, path: str) -> None:
        self.did.append(f"remove {path}")
        shutil.rmtree(self.volumes.checkpoints / path)

    def write_record(self, run: str, name: str, text: str) -> None:
        """Write the file; answer a request in the record, as the trainer does."""
        self.did.append(f"request {run} {text.strip()}")
        if name != REQUEST_NAME:
            (self.volumes.run(run) / name).write_text(text)
            return
        path = self.volumes.run(run) / "run.json"
        request = {"id": json.loads(text)["id"], **self.answer}
        path.write_text(json.dumps({**json.loads(path.read_text()), "request": request}))

    def runs(self) -> Iterable[RunInfo]:
        return self.states

    def state(self, run: str) -> RunInfo | None:
        return next((state for state in self.states if state.run == run), None)

    def launched(self, run: str) -> LaunchHandle | None:
        launch = read_launch(self.checkout / "volumes" / "checkpoints" / run)
        return launch or (self.last if self.last is not None and self.last.run == run else None)

    def output(self, run: str, lines: int) -> list[str]:
        return self.printed[-lines:] if lines else []

    def files(self, volume: str) -> LocalVolume:
        return LocalVolume(self.checkout / "volumes" / volume)
