"""The values of a plan: what a target found, and what a launch will do. runner/planning/plan.py decides the one from the other."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from runner.errors import RunnerError, usage
from runner.request import Request, TargetOptions

if TYPE_CHECKING:
    from job.recipe import Recipe
    from job.run_record import RunRecord


@dataclass(frozen=True)
class Volume:
    """A folder that the job sees: its name, where it is on this machine and inside; ``remote`` is its name on
    a target that has a volume of its own, whose files lie in ``here`` only once they are pulled."""

    name: str
    here: str
    inside: str
    writable: bool = True
    remote: str = ""


@dataclass(frozen=True)
class TargetState:
    """What a target found when it looked; gathering them changes nothing."""

    target: str
    checkout: str
    workspace: str  # the checkout as the job sees it, and its working folder
    volumes: tuple[Volume, ...]  # data, checkpoints, cache
    python: tuple[str, ...] = ("python",)
    torchrun: tuple[str, ...] = ("torchrun",)
    contained: bool = True  # the job sees only what is mounted
    mounts: bool = True  # a folder of this machine can be mounted
    image: str | None = None
    image_built: bool = True
    gpus: int | None = None  # that it can hand out; None: unknown
    gpu_remedy: str = ""
    missing: tuple[str, ...] = ()  # modules that the job needs and the target lacks
    remedy: str = ""  # what to type for them
    busy: str | None = None  # what is running under this run's name
    step: int | None = None  # of the newest checkpoint
    dataset_ready: bool | None = None
    weights_ready: bool | None = (
        None  # published ones, with which the run begins; None: there are none
    )
    secrets: tuple[str, ...] = ()  # names of those that are at hand
    environment: tuple[tuple[str, str], ...] = ()  # further variables; no secrets
    git: tuple[tuple[str, Any], ...] = ()
    folder: str = ""  # a command's folder as the job sees it
    shipped: UploadManifest | None = (
        None  # what of it is copied there; None where it is the folder itself
    )
    occupied: tuple[str, ...] = ()  # paths to keep that hold files of the user's own, and stay
    setup: tuple[
        str, ...
    ] = ()  # lines that the image is extended by, those of requirements.txt too
    setup_built: bool = True
    finished: bool = False  # the run's last attempt
    attempts: int = 0  # of the run, so far
    record: RunRecord | None = None  # of the run, as it stands
    account: bool = True  # False: nothing could be looked up, neither runs nor data
    begun_with: Recipe | None = None  # what a run of the built-in trainer wrote down
    # What the cloud has of a run that is started here, or this machine of one that is started there.
    other: RemoteRunState | None = None


CREDENTIALS = "may hold credentials"  # why a file is left out


@dataclass(frozen=True)
class UploadManifest:
    """What of a folder is copied to where the job is: how much, and what stands out."""

    files: int
    bytes: int
    largest: tuple[
        tuple[str, int], ...
    ] = ()  # file or folder at the top, and bytes, where it is much
    left_out: tuple[tuple[str, str], ...] = ()  # path and reason: links, credentials


@dataclass(frozen=True)
class PersistedPath:
    """A path of a command's folder that lies on a volume: ``here`` on this machine, ``inside`` for the job."""

    path: str
    here: str
    inside: str


@dataclass(frozen=True)
class PlannedFolder:
    """The folder that a command runs in: ``here`` on this machine, ``inside`` for the job."""

    here: str
    inside: str
    shipped: UploadManifest | None = None
    kept: tuple[PersistedPath, ...] = ()
    setup: tuple[str, ...] = ()
    setup_built: bool = True


@dataclass(frozen=True)
class Plan:
    """A launch, complete. ``command`` is what runs inside, in ``workspace``."""

    job: str
    target: str
    run: str
    recipe: str | None
    overrides: tuple[str, ...]
    command: tuple[str, ...]
    workspace: str
    checkout: str
    image: str | None
    image_built: bool
    gpus: int
    device: str | None
    volumes: tuple[Volume, ...]
    environment: tuple[tuple[str, str], ...]
    secrets: tuple[str, ...]
    resume: int | None
    steps: tuple[str, ...]
    detach: bool = False
    as_json: bool = False
    notes: tuple[
        tuple[str, str], ...
    ] = ()  # further rows that only one target has: price, fit, hours
    question: str | None = None  # asked before it starts, for example where it costs money
    target_options: TargetOptions = field(default_factory=TargetOptions)
    writes_run: bool = False  # it makes or continues a run's folder
    seconds: float | None = None  # estimated, on the slowest GPU of those asked for
    usd_per_hour: float | None = None  # of the dearest; None where nobody is paid
    folder: PlannedFolder | None = None  # of a command

    @property
    def records_launch(self) -> bool:
        """Whether the run's folder tells of this launch: it is a run's, or nobody watches it."""
        return self.detach or self.writes_run

    def facts(self) -> dict[str, Any]:
        """The plan for --json. It holds names of secrets and no values."""
        return asdict(self)


def launch_variable(request: Request, facts: TargetState) -> str:
    """RUN_LAUNCH: what the record keeps of this launch."""
    found: dict[str, Any] = {
        "target": facts.target,
        "gpu": request.target_options.gpu or (str(request.gpus) if request.gpus > 1 else None),
        "image": facts.image,
        "git": dict(facts.git),
    }
    if request.experiment is not None:
        found["experiment"] = request.experiment.as_record()
    elif request.command is not None:
        found["command"] = request.command.as_record()
    return json.dumps(found)


@dataclass(frozen=True)
class RemoteRunState:
    """The same run on the other side of `pull` and `push`: remote for a local start, local for a remote one."""

    target: str  # the last one that it ran on there
    is_remote: bool
    is_active: bool = False
    step: int | None = None  # of its newest checkpoint there
    ran_since: bool = False  # a command was started there later; its checkpoints have no steps


def refuse_divergence(
    run: str, target: str, step: int | None, other: RemoteRunState, folder: str
) -> None:
    """Raise RunnerError if ``run`` is active on the other side, or has newer checkpoints there.

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
            f"run '{run}' is at step {other.step} on {other.target} and has no checkpoint on {target}; "
            f"copy it first: `{copy}`"
        )
    older = f"rename {folder} and resume that name" if other.is_remote else f"move {folder} away"
    raise usage(
        f"run '{run}' is at step {other.step} on {other.target} and only at step {step} on {target}; "
        f"copy the newer checkpoint first: `{copy}` (or {older}, to resume from the older one)"
    )


def is_active_elsewhere(run: str, target: str, copy: str = "") -> RunnerError:
    """Return the error for starting a run that is active on ``target``; ``copy`` fetches its checkpoints."""
    then = f", then `{copy}`," if copy else ""
    return RunnerError(
        f"run '{run}' is running on {target}; stop it first: `runner stop {run}`{then} "
        "or start another run with --name"
    )
