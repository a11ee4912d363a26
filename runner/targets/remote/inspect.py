"""Inspect a box before a plan: its engine, image and GPUs, the run, the dataset, the folder.

Also the runs on a box, from the records on its volume, and their pulled copies.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from job.run_record import is_run_name
from runner.errors import RunnerError
from runner.plan import ImageState, PlannedFolder, PriorRun, TargetState
from runner.request import Request, TrainRequest
from runner.runs.find import local_state
from runner.runs.store import PulledRuns, recipe_of, record_of, state_named, step_of
from runner.target import RunInfo
from runner.targets.base import inspect_target, remote_environment, uploaded_folder
from runner.targets.docker import has_setup_image
from runner.targets.remote.connection import explain
from runner.targets.remote.files import Agent

if TYPE_CHECKING:
    from runner.targets.remote.target import RemoteTarget


@contextmanager
def copied_records(agent: Agent) -> Iterator[Path]:
    """Copy the small files of all runs to a temporary folder, in one request."""
    with TemporaryDirectory(prefix="gpt-runner-") as temporary:
        try:
            packed = agent.request("records")[1]
        except FileNotFoundError:  # no image yet, so no runs
            packed = zlib.compress(b"{}")
        for run, files in json.loads(zlib.decompress(packed)).items():
            if not is_run_name(run):
                continue
            folder = Path(temporary) / run
            folder.mkdir()
            for name, (text, modified) in files.items():
                path = folder / Path(name).name
                path.write_text(text, encoding="utf-8")
                os.utime(path, (modified, modified))  # a heartbeat tells the time by it
        yield Path(temporary)


class BoxCopies(PulledRuns):
    """The pulled copies of a box's runs."""

    def state(self, run: str) -> RunInfo | None:
        """Return the state of the run when it was pulled; None if it was not pulled."""
        state = state_named(run, self.checkpoints, self.target, lambda _: (False, None))
        if state is None:
            return None
        return replace(state, is_copy=True, alive=False, last_seen=state.ended or state.started)


def inspect_box(target: RemoteTarget, request: Request) -> TargetState:
    """Return the state of the box for one request; change nothing."""
    if target.system.engine.problem:
        raise RunnerError(explain(target.box, target.system.engine.problem))
    state = inspect_target(
        target,
        target.cli,
        target.checkout,
        request,
        remote_environment(target.volumes, target.names),
        lambda: _find_run(target, request),
    )
    folder = uploaded_folder(request.command, target.checkout) if request.command else None
    if folder is not None and request.command is not None and folder.setup:
        path = str(request.command.folder)
        planned = PlannedFolder(path, folder.container_path, setup=folder.setup)
        is_built = has_setup_image(target.system, target.image, planned)
        folder = replace(folder, is_setup_built=is_built)
    image = ImageState(target.image, target.any_image == target.image)
    return replace(state, image=image, folder=folder, gpus=target.gpus)


def _find_run(target: RemoteTarget, request: Request) -> PriorRun:
    files, run, writes_run = target.files("checkpoints"), request.run, request.job.writes_run
    record, is_training = record_of(files, run), isinstance(request, TrainRequest)
    state = target.state(run) if writes_run or request.detach else None
    return PriorRun(
        record=record,
        recipe=recipe_of(files, run) if is_training else None,
        step=step_of(files, run),
        attempts=len(record.attempts) if record else 0,
        active=f"{state.status} on {target.name}" if state and state.alive else None,
        other=local_state(target.cli, target.checkout, run, record) if writes_run else None,
    )
