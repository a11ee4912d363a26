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

from job.paths import VOLUMES, VolumePaths
from job.pretrained import weights_of
from job.run_record import is_run_name
from runner.errors import RunnerError
from runner.plan import (
    FolderState,
    ImageState,
    JobEnvironment,
    PlannedFolder,
    PriorRun,
    TargetState,
    Volume,
)
from runner.planning.packaging import list_files, setup_lines
from runner.project import check_forwarded_env, git_state, secret_names
from runner.request import Request, TrainRequest, UserCommand, folder_name
from runner.runs.find import local_state
from runner.runs.store import (
    PulledRuns,
    is_dataset_ready,
    recipe_of,
    record_of,
    state_named,
    step_of,
)
from runner.target import RunInfo
from runner.targets.docker import has_setup_image
from runner.targets.remote.connection import explain
from runner.targets.remote.files import WORKSPACE, Agent

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
    names = request.target_options.forwarded_env
    check_forwarded_env(names, target.cli.environ, target.checkout)
    if target.system.engine.problem:
        raise RunnerError(explain(target.box, target.system.engine.problem))
    files, run = target.files("checkpoints"), request.run
    settings, is_training = request.settings, isinstance(request, TrainRequest)
    dataset, weights = settings.data.dataset if settings else None, weights_of(settings)
    record, writes = record_of(files, run), request.job.writes_run
    state = target.state(run) if writes or request.detach else None
    command = request.command
    is_ready = is_dataset_ready(target.files("data"), dataset) if dataset else None
    folders = {name: str(getattr(target.volumes, name)) for name in VOLUMES}
    return TargetState(
        target=target.name,
        checkout=str(target.checkout),
        environment=JobEnvironment(
            workspace=WORKSPACE,
            volumes=tuple(
                Volume(name, folders[name], f"/vol/{name}", remote=target.names[name])
                for name in VOLUMES
            ),
            can_mount=False,
            variables=tuple(
                {
                    **VolumePaths.under(Path("/vol")).environment(),
                    "PYTHONPATH": WORKSPACE,
                }.items()
            ),
        ),
        run=PriorRun(
            record=record,
            recipe=recipe_of(files, run) if is_training else None,
            step=step_of(files, run),
            attempts=len(record.attempts) if record else 0,
            active=f"{state.status} on {target.name}" if state and state.alive else None,
            other=local_state(target.cli, target.checkout, run, record) if writes else None,
        ),
        image=ImageState(target.image, target.any_image == target.image),
        folder=_folder_state(target, command) if command is not None else None,
        gpus=target.gpus,
        is_dataset_ready=is_ready,
        is_pretrained_cached=(
            target.files("cache").size(weights.weights) is not None if weights else None
        ),
        secrets=secret_names(target.cli.environ, target.checkout),
        git=tuple((git_state(command.folder if command else target.checkout) or {}).items()),
    )


def _folder_state(target: RemoteTarget, command: UserCommand) -> FolderState:
    listing = list_files(command.folder, target.checkout)
    listing.check(command.script)
    state = FolderState(
        f"/job/{folder_name(command.folder)}", listing.summary(), setup=setup_lines(command)
    )
    if not state.setup:
        return state
    planned = PlannedFolder(str(command.folder), state.container_path, setup=state.setup)
    return replace(state, is_setup_built=has_setup_image(target.system, target.image, planned))
