"""The state of a target before a launch, and the plan of the launch.

``runner/planning`` derives the plan from the state.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from job.gpu_queue import Ticket
from job.run_record import RunStatus
from runner.errors import RunnerError, usage
from runner.request import Request, TargetOptions

if TYPE_CHECKING:
    from job.recipe import Recipe
    from job.run_record import RunRecord


@dataclass(frozen=True)
class Volume:
    """A folder that the job sees: ``host_path`` on this machine, ``container_path`` for the job.

    On the host both are the same. ``remote`` names the target's own volume, whose files are in
    ``host_path`` only once they are pulled.
    """

    name: str
    host_path: str
    container_path: str
    writable: bool = True
    remote: str = ""


@dataclass(frozen=True)
class JobEnvironment:
    """The surroundings of a job: its interpreter, folders and variables."""

    workspace: str  # the checkout as the job sees it, and its working folder
    volumes: tuple[Volume, ...]  # data, checkpoints, cache
    python: tuple[str, ...] = ("python",)
    torchrun: tuple[str, ...] = ("torchrun",)
    is_container: bool = True  # the job sees only what is mounted
    can_mount: bool = True  # folders of this machine can be mounted
    variables: tuple[tuple[str, str], ...] = ()  # without secrets
    reports_end: bool = False  # the target itself sends notifications


@dataclass(frozen=True)
class ImageState:
    """The image that the job runs in."""

    name: str
    is_built: bool = True
    packages: tuple[str, ...] = ()  # of trackers, in a layer of their own


CREDENTIALS = "may hold credentials"  # why a file is omitted


@dataclass(frozen=True)
class UploadManifest:
    """The files of a folder that are uploaded: how many, how large, and the exceptions."""

    files: int
    bytes: int
    largest: tuple[tuple[str, int], ...] = ()  # top-level entries and their bytes, if it is a lot
    omitted: tuple[tuple[str, str], ...] = ()  # paths and reasons: links, credentials


@dataclass(frozen=True)
class FolderState:
    """A command's folder as the job sees it."""

    container_path: str
    manifest: UploadManifest | None = None  # None if the job uses the folder itself
    occupied: tuple[str, ...] = ()  # persisted paths with files of the user, which stay
    setup: tuple[str, ...] = ()  # lines that extend the image, with those of requirements.txt
    is_setup_built: bool = True


@dataclass(frozen=True)
class PriorRun:
    """The existing run with the request's name, before the launch."""

    record: RunRecord | None = None
    recipe: Recipe | None = None  # that a run of the built-in trainer recorded
    step: int | None = None  # of its newest checkpoint
    attempts: int = 0
    active: str | None = None  # "running on host", if it is active
    other: RemoteRunState | None = None  # where `pull` or `push` would copy it from

    @property
    def is_finished(self) -> bool:
        """Return True if the last attempt finished."""
        return self.record is not None and self.record.status == RunStatus.FINISHED


@dataclass(frozen=True)
class QueueState:
    """The queue for the GPUs of this machine, a folder."""

    host_path: str
    container_path: str
    ticket: Ticket  # of the request
    blocker: Ticket | None = None  # the first run that it would have to wait for


@dataclass(frozen=True)
class TargetState:
    """A target before a launch, as ``Target.inspect`` found it."""

    target: str
    checkout: str
    environment: JobEnvironment
    run: PriorRun = field(default_factory=PriorRun)
    image: ImageState | None = None
    folder: FolderState | None = None  # of a command
    gpus: int | None = None  # available ones; None if unknown
    gpu_remedy: str = ""
    queue: QueueState | None = None  # None if the request takes no GPU of this machine
    missing_modules: tuple[str, ...] = ()  # that the job needs
    install_command: str = ""  # for them
    is_dataset_ready: bool | None = None
    is_pretrained_cached: bool | None = None  # None if the run starts from no pretrained weights
    secrets: tuple[str, ...] = ()  # names of the available ones
    git: tuple[tuple[str, Any], ...] = ()
    is_configured: bool = True  # False: without an account, neither runs nor data are known

    def for_new_run(self) -> Self:
        """Return the state as it is for a run that does not exist yet."""
        return replace(self, run=PriorRun())


@dataclass(frozen=True)
class PersistedPath:
    """The persisted ``path`` of a folder, and its location on the volume as in Volume."""

    path: str
    host_path: str
    container_path: str


@dataclass(frozen=True)
class PlannedFolder:
    """The folder that a command runs in."""

    host_path: str
    container_path: str
    manifest: UploadManifest | None = None
    persisted: tuple[PersistedPath, ...] = ()
    setup: tuple[str, ...] = ()
    is_setup_built: bool = True


@dataclass(frozen=True)
class PlannedProcess:
    """The process to start: ``command`` runs in ``workspace``. ``secrets`` are names."""

    command: tuple[str, ...]
    workspace: str
    environment: tuple[tuple[str, str], ...] = ()
    secrets: tuple[str, ...] = ()
    gpus: int = 1
    device: str | None = None
    publish: str = ""  # of a container, as docker's --publish: 127.0.0.1:8000:8000


@dataclass(frozen=True)
class PlanEstimate:
    """Time and price of a launch on the slowest and most expensive GPU type of the request."""

    seconds: float | None = None
    usd_per_hour: float | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that a launch will do."""

    job: str
    target: str
    run: str
    checkout: str
    process: PlannedProcess
    volumes: tuple[Volume, ...]
    steps: tuple[str, ...]  # for display
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    resume: int | None = None  # the step
    image: ImageState | None = None
    folder: PlannedFolder | None = None  # of a command
    estimate: PlanEstimate = field(default_factory=PlanEstimate)
    extra_rows: tuple[tuple[str, str], ...] = ()  # of one target: price, memory, hours
    price: str | None = None  # a sentence that the user must confirm before the start
    detach: bool = False
    as_json: bool = False
    writes_run: bool = False  # it creates or resumes a run's folder
    target_options: TargetOptions = field(default_factory=TargetOptions)

    @property
    def records_launch(self) -> bool:
        """Return True if the run's folder records this launch."""
        return self.detach or self.writes_run

    @property
    def metadata(self) -> dict[str, Any]:
        """Return the part of the launch that run.json records: target, recipe, tags, git."""
        return json.loads(dict(self.process.environment).get("RUN_LAUNCH", "{}"))

    def to_json(self) -> dict[str, Any]:
        """Return the plan for --json, with the parts' values at the top level."""
        tree = asdict(self)
        image = tree.pop("image") or {"name": None, "is_built": True}
        return {
            **tree.pop("process"),
            **tree.pop("estimate"),
            **tree,
            "image": image["name"],
            "image_built": image["is_built"],
        }


def launch_variable(request: Request, state: TargetState) -> str:
    """Return the value of RUN_LAUNCH: the part of the launch that run.json records."""
    launch: dict[str, Any] = {
        "target": state.target,
        "gpu": request.target_options.gpu or (str(request.gpus) if request.gpus > 1 else None),
        "image": state.image.name if state.image else None,
        "git": dict(state.git),
    }
    if request.sweep is not None:
        launch["sweep"] = request.sweep
    if request.tags:
        launch["tags"] = list(request.tags)
    if request.settings is not None:
        launch["recipe"] = request.settings.name
    if request.experiment is not None:
        launch["experiment"] = request.experiment.as_record()
    elif request.command is not None:
        launch["command"] = request.command.as_record()
    return json.dumps(launch)


@dataclass(frozen=True)
class RemoteRunState:
    """The state of the same run in the place that `pull` or `push` would copy it from."""

    target: str  # the last one that it ran on there
    is_remote: bool
    is_active: bool = False
    step: int | None = None  # of its newest checkpoint there
    ran_since: bool = False  # a command was started there later; its checkpoints have no steps


def refuse_divergence(
    run: str, target: str, step: int | None, other: RemoteRunState, folder: str
) -> None:
    """Raise RunnerError if ``run`` is active elsewhere, or has newer checkpoints there.

    ``step`` is the one from which ``target`` would resume, ``folder`` the run's on this machine.
    """
    copy = f"runner {'pull' if other.is_remote else 'push'} checkpoints {run}"
    if other.is_active:
        raise is_active_elsewhere(run, other.target, copy)
    if other.ran_since:
        raise usage(
            f"run '{run}' has run on {other.target} since, and its files on {target} are older; "
            f"copy the newer ones first: `{copy}`"
        )
    if other.step is None or other.step <= (-1 if step is None else step):
        return
    if step is None:
        raise usage(
            f"run '{run}' is at step {other.step} on {other.target} and has no checkpoint on "
            f"{target}; copy it first: `{copy}`"
        )
    older = f"rename {folder} and resume that name" if other.is_remote else f"move {folder} away"
    raise usage(
        f"run '{run}' is at step {other.step} on {other.target} and only at step {step} on "
        f"{target}; copy the newer checkpoint first: `{copy}` "
        f"(or {older}, to resume from the older one)"
    )


def is_active_elsewhere(run: str, target: str, copy: str = "") -> RunnerError:
    """Return the error for starting a run that is active on ``target``.

    ``copy`` fetches its checkpoints.
    """
    then = f", then `{copy}`," if copy else ""
    return RunnerError(
        f"run '{run}' is running on {target}; stop it first: `runner stop {run}`{then} "
        "or start a new run with --name"
    )
