"""The Modal app of one launch: created, started detached, with one function and one call."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.format import parse_duration
from job.paths import VOLUMES
from job.user_command.resume import MARKER
from runner.errors import ModalUnavailable, RunnerError
from runner.jobs import COMMAND
from runner.plan import Plan
from runner.planning.command_plan import SEEDS
from runner.planning.packaging import (
    SETUP_FOLDER,
    Listing,
    list_files,
    make_omitted_test,
    setup_digest,
    setup_files,
)
from runner.pricing.gpus import BY_NAME
from runner.project import PROJECT, secret_values
from runner.target import LaunchHandle
from runner.targets.modal import calls
from runner.targets.modal import image as images
from runner.targets.modal.calls import MAX_TAG_LENGTH
from runner.targets.modal.client import translate_modal_errors, unreachable_message
from runner.targets.modal.image import path_filter
from runner.targets.modal.options import ResolvedOptions
from runner.targets.modal.volume import modal_name
from runner.targets.modal.watchdog import MAX_ATTEMPT_S, MAX_RETRIES

if TYPE_CHECKING:
    import modal

    from runner.targets.modal.entrypoint import JobSpec


# Pulling an image of 10 GB, and 8 GPUs that respond slowly. Modal's own default is the function's
# timeout: a container that never starts would be waited for a day.
STARTUP_TIMEOUT_S = 1200

# The delay before the second attempt, doubled before each further one.
RETRY_DELAY_S, MAX_RETRY_DELAY_S = 1.0, 60.0


@dataclass(frozen=True)
class AppLaunch:
    """A launch of one job. ``launch_id`` is unique to it; the app's tags hold it."""

    launch_id: str
    job: JobSpec
    options: ResolvedOptions
    forwarded_env: Sequence[str]
    attempt_timeout_s: int
    is_image_built: bool
    folder: JobFolder | None = None
    files: tuple[tuple[str, str], ...] = ()  # single files: host and container paths
    packages: Sequence[str] = ()  # that the image has in addition to the locked ones


def start_app(
    launch: AppLaunch,
    checkout: Path,
    environ: Mapping[str, str],
    volumes: Mapping[str, modal.Volume],
    on_app: Callable[[], None],
    info: Callable[[str], None],
    show_build: bool,
) -> tuple[str, str]:
    """Build the image if needed, create the app and spawn its call, detached.

    Returns the ids of the app and the call. ``on_app`` is called when the image is built, before
    the call is spawned. Raises RunnerError.
    """
    app, function, image = _define(launch, checkout, environ, volumes)
    if not launch.is_image_built:
        with launch_errors(), build_output(show_build):
            images.build_now(image, info)
    call: modal.FunctionCall[Any] | None = None
    try:
        with launch_errors(), app.run(detach=True):
            on_app()
            call = function.spawn({**launch.job, "app": app.app_id})
        if call is None:  # on Ctrl-C the client leaves the block of a detached app without an error
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        if app.app_id is not None:
            _stop_app(str(app.app_id))
        raise
    except (RunnerError, OSError) as error:
        if call is not None:  # only leaving the app failed
            return str(app.app_id), str(call.object_id)
        if app.app_id is not None and not _stop_app(str(app.app_id)):
            raise RunnerError(
                f"{getattr(error, 'message', error)}; the function call may have started: check "
                f"`runner status {launch.job['run']}`, or stop it: modal app stop {app.app_id}"
            ) from error
        raise
    return str(app.app_id), str(call.object_id)


def _define(
    launch: AppLaunch, checkout: Path, environ: Mapping[str, str], volumes: Mapping[Any, Any]
) -> tuple[modal.App, modal.Function[Any, Any, Any], modal.Image]:
    """Define the app, its function and its image. Sends nothing to Modal."""
    import modal

    from runner.targets.modal.entrypoint import run_job

    job, options = launch.job, launch.options
    image = images.define_image(checkout, launch.folder, launch.files, launch.packages)
    tags = {"project": PROJECT, "run": job["run"], "job": job["job"], "launch": launch.launch_id}
    app = modal.App(PROJECT, tags={name: value[:MAX_TAG_LENGTH] for name, value in tags.items()})
    body: Any = run_job
    if options.nodes > 1:
        rdma = all(BY_NAME[name].rdma for name in options.gpus.names)
        body = modal.clustered(size=options.nodes, rdma=rdma)(run_job)
    function = app.function(
        name=job["job"],
        image=images.add_runner(image),
        include_source=False,
        gpu=options.gpus.modal_names() or None,
        cpu=options.machine.cores,
        memory=int(options.machine.memory_gib * 1024),
        volumes=dict(volumes),
        secrets=modal_secrets(launch.forwarded_env, options.modal_secrets, environ, checkout),
        region=options.region.split(",") if options.region else None,
        timeout=launch.attempt_timeout_s,
        startup_timeout=STARTUP_TIMEOUT_S,
        retries=modal.Retries(
            max_retries=MAX_RETRIES,
            initial_delay=RETRY_DELAY_S,
            backoff_coefficient=2.0,
            max_delay=MAX_RETRY_DELAY_S,
        ),
        single_use_containers=True,
        max_containers=1 if options.nodes == 1 else None,
    )(body)
    return app, function, image


def _stop_app(app: str) -> bool:
    """Stop an app that nothing follows; return True if it certainly stopped."""
    with suppress(Exception):
        calls.stop_app(app)
        return True
    return False


def job_spec(
    plan: Plan,
    options: ResolvedOptions,
    handle: LaunchHandle,
    timeout_s: int,
    usd_per_hour: dict[str, float],
    environ: Mapping[str, str],
) -> JobSpec:
    """Return the argument of the function: the container's view of the launch."""
    is_command = plan.job == COMMAND.name
    return {
        "run": plan.run,
        "job": plan.job,
        "command": list(plan.process.command),
        "env": dict(plan.process.environment),
        "volumes": {name: modal_name(name, environ) for name in VOLUMES},
        "keeps_record": plan.records_launch,
        "launch": asdict(handle),
        "attempt_s": float(timeout_s),
        "total_s": options.timeout_s,
        "max_cost": options.max_cost,
        "usd_per_hour": usd_per_hour,
        "nodes": options.nodes,
        "stop_stalled_after_s": options.stop_stalled_after_s,
        "stop_idle_gpu_after_s": options.stop_idle_gpu_after_s,
        # A command may write anywhere, and marks no checkpoint as complete. The supervisor's
        # note about the checkpoint to resume from is the nearest to that.
        "commits": ["checkpoints", "data"] if is_command else ["checkpoints"],
        "marker": MARKER if is_command else "latest",
    }


@contextmanager
def launch_errors() -> Iterator[None]:
    """Raise Modal's errors during a build or launch as RunnerError."""
    from modal import exception

    try:
        with translate_modal_errors():
            yield
    except RunnerError:
        raise
    except exception.RemoteError as error:
        is_transient = images.SHUTDOWN_MESSAGE in str(error)
        hint = (
            "try again" if is_transient else "`docker compose build` builds the same image locally"
        )
        raise RunnerError(f"Modal could not build the image: {error}; {hint}") from error
    except ModalUnavailable as error:
        raise RunnerError(unreachable_message(str(error))) from error
    except FileNotFoundError as error:
        if error.filename is not None:  # a local file
            raise RunnerError(f"cannot read {error.filename}: {error.strerror}") from error
        raise RunnerError(f"Modal does not find an object of the launch: {error}") from error
    except OSError as error:
        name = f"{error.filename}: " if error.filename is not None else ""
        raise RunnerError(f"cannot start the launch: {name}{error.strerror or error}") from error


@contextmanager
def build_output(show: bool) -> Iterator[None]:
    """Print Modal's output of a build on stderr: stdout is the job's."""
    if not show:
        yield
        return
    import modal

    with redirect_stdout(sys.stderr), modal.enable_output():
        yield


def attempt_limit(environ: Mapping[str, str] = os.environ) -> float:
    """Return the longest attempt in seconds: Modal's limit, or GPT_RUNNER_ATTEMPT, such as 6h."""
    text = environ.get("GPT_RUNNER_ATTEMPT")
    return min(MAX_ATTEMPT_S, parse_duration(text, "GPT_RUNNER_ATTEMPT")) if text else MAX_ATTEMPT_S


def modal_secrets(
    variables: Iterable[str],
    secret_names: Iterable[str],
    environ: Mapping[str, str],
    checkout: Path,
) -> list[modal.Secret]:
    """Return a function's secrets: values of ``variables``, and Modal's ``secret_names``."""
    import modal

    values: dict[str, str | None] = {**secret_values(variables, environ, checkout)}
    secrets = [modal.Secret.from_dict(values)] if values else []
    return [*secrets, *(modal.Secret.from_name(name) for name in secret_names)]


@dataclass(frozen=True)
class JobFolder:
    """A user's ``folder``, mounted at ``container_path``, its persisted paths below SEEDS."""

    checkout: Path
    folder: Path
    container_path: str
    setup: tuple[str, ...]
    persisted: tuple[str, ...]

    @classmethod
    def from_plan(cls, plan: Plan) -> JobFolder | None:
        """Return the plan's folder; None for a job without one."""
        if plan.folder is None:
            return None
        planned = plan.folder
        persisted = tuple(keep.path for keep in planned.persisted)
        return cls(
            Path(plan.checkout),
            Path(planned.host_path),
            planned.container_path,
            planned.setup,
            persisted,
        )

    @cached_property
    def listing(self) -> Listing:
        """Return the files to upload. Raises RunnerError if one cannot be read."""
        listing = list_files(self.folder, self.checkout)
        listing.check()
        return listing

    @property
    def setup_digest(self) -> str:
        """Return the digest of the setup's layer; '' without a setup."""
        return setup_digest(self.folder, self.setup) if self.setup else ""

    def add_setup(self, image: modal.Image) -> modal.Image:
        """Add the setup as a layer, which Modal builds once."""
        for name in setup_files(self.folder, self.setup):
            image = image.add_local_file(self.folder / name, f"{SETUP_FOLDER}/{name}", copy=True)
        lines = (f"mkdir -p {SETUP_FOLDER} && cd {SETUP_FOLDER} && {line}" for line in self.setup)
        return image.run_commands(*lines)

    def mount(self, image: modal.Image) -> modal.Image:
        """Mount the files, so that an edit rebuilds nothing."""
        out = make_omitted_test(self.listing, self.persisted)
        image = image.add_local_dir(
            self.folder, self.container_path, copy=False, ignore=path_filter(out)
        )
        for path in self.persisted:
            files = self.listing.below(path)
            if files:
                seeds = make_omitted_test(Listing(self.folder / path, dict.fromkeys(files, 0)))
                image = image.add_local_dir(
                    self.folder / path, f"{SEEDS}/{path}", copy=False, ignore=path_filter(seeds)
                )
        return image

    def __str__(self) -> str:
        return shlex.quote(str(self.folder))
