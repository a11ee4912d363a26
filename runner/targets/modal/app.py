"""The Modal app of one launch: started detached with one function call, or deployed as a server."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.format import parse_duration
from job.paths import VOLUMES
from job.user_command.resume import MARKER
from runner.errors import ModalUnavailable, RunnerError
from runner.jobs import COMMAND
from runner.plan import Plan, PlannedFolder
from runner.planning.command_plan import SEEDS
from runner.planning.gpus import BY_NAME
from runner.planning.packaging import (
    SETUP_FOLDER,
    Listing,
    list_files,
    make_omitted_test,
    setup_digest,
    setup_files,
)
from runner.planning.plan import already_active_message
from runner.project import PROJECT, secret_values
from runner.request import TargetOptions
from runner.target import LaunchHandle
from runner.targets.modal import calls
from runner.targets.modal import image as images
from runner.targets.modal.calls import MAX_TAG_LENGTH
from runner.targets.modal.client import translate_modal_errors, unreachable_message
from runner.targets.modal.image import path_filter
from runner.targets.modal.options import ResolvedOptions
from runner.targets.modal.plan import SCALEDOWN_S
from runner.targets.modal.runs import state_of
from runner.targets.modal.volume import modal_name
from runner.targets.modal.watchdog import MAX_ATTEMPT_S, MAX_RETRIES

if TYPE_CHECKING:
    import modal

    from runner.targets.modal.entrypoint import JobSpec
    from runner.targets.modal.target import ModalTarget


# Enough for an image of 10 GB and 8 GPUs that respond slowly. Modal's default is the function's
# timeout: the runner would wait a day for a container that never starts.
STARTUP_TIMEOUT_S = 1200

# The delay before the second attempt, doubled before each further one.
RETRY_DELAY_S, MAX_RETRY_DELAY_S = 1.0, 60.0

AFFORDABLE_MARGIN_S = 900  # time for the container to stop the job before Modal does


def start_call(
    target: ModalTarget, plan: Plan, options: ResolvedOptions, used_s: float
) -> LaunchHandle:
    """Build the image if needed, create the app and spawn its call, detached.

    The run has used up ``used_s``. If this process ends before it records the launch, the app is
    found by its tags, and the container records the launch. Raises RunnerError.
    """
    hourly = target.usd_per_hour(options)
    timeout_s = attempt_timeout(options, used_s, hourly, target.cli.environ)
    handle = target.handle(plan, options)
    job = job_spec(plan, handle, timeout_s, hourly, target.cli.environ)
    folder = JobFolder.from_plan(plan)
    packages = plan.image.packages if plan.image else ()
    files = [(v.host_path, v.container_path) for v in plan.volumes if v.name == "mount"]
    is_built = target.builds.is_built(plan, target.cli.info)
    volumes = target.mounts()
    image = images.define_image(target.checkout, folder, files, packages)
    own_secrets = modal_secrets(target, plan.process.secrets, options)
    app, function = _define(job, options, handle, image, volumes, own_secrets)
    if not is_built:
        with launch_errors(), build_output(not plan.as_json):
            images.build_now(image, target.cli.info)
    call: modal.FunctionCall[Any] | None = None
    try:
        with launch_errors(), app.run(detach=True):
            target.builds.remember(folder.setup_digest if folder else "", " ".join(packages))
            call = function.spawn({**job, "app": app.app_id})
        if call is None:  # on Ctrl-C the client leaves the block of a detached app without an error
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        if app.app_id is not None:
            _stop_app(str(app.app_id))
        raise
    except (RunnerError, OSError) as error:
        if call is None:  # otherwise only leaving the app failed
            if app.app_id is not None and not _stop_app(str(app.app_id)):
                raise RunnerError(
                    f"{getattr(error, 'message', error)}; the function call may have started: "
                    f"check `runner status {plan.run}`, or stop it: modal app stop {app.app_id}"
                ) from error
            raise
    return replace(handle, location=str(app.app_id), id=str(call.object_id))


def _define(
    job: JobSpec,
    options: ResolvedOptions,
    handle: LaunchHandle,
    image: modal.Image,
    volumes: Mapping[Any, Any],
    function_secrets: Sequence[modal.Secret],
) -> tuple[modal.App, modal.Function[Any, Any, Any]]:
    """Define the app and its function. Sends nothing to Modal."""
    import modal

    from runner.targets.modal.entrypoint import run_job

    app = _new_app(handle)
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
        secrets=function_secrets,
        region=options.region.split(",") if options.region else None,
        timeout=int(job["attempt_s"]),
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
    return app, function


def _new_app(handle: LaunchHandle) -> modal.App:
    """Return the app of a launch, whose tags name the run, the job and the launch."""
    import modal

    tags = {"project": PROJECT, "run": handle.run, "job": handle.job, "launch": handle.identity}
    return modal.App(PROJECT, tags={name: text[:MAX_TAG_LENGTH] for name, text in tags.items()})


def _stop_app(app: str) -> bool:
    """Stop an app that nothing follows; return True if it certainly stopped."""
    with suppress(Exception):
        calls.stop_app(app)
        return True
    return False


def job_spec(
    plan: Plan,
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
        "usd_per_hour": usd_per_hour,
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


def attempt_timeout(
    options: ResolvedOptions,
    used_s: float,
    usd_per_hour: Mapping[str, float],
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Return Modal's timeout for an attempt of a run that has used up ``used_s``, in seconds.

    At most Modal's limit, GPT_RUNNER_ATTEMPT (such as 6h), what the run has left, and the seconds
    until --max-cost is spent on the cheapest GPU type, which hold if the container's watch fails.
    """
    limits = [MAX_ATTEMPT_S, max(60.0, (options.timeout_s - used_s) * 1.25)]
    if text := environ.get("GPT_RUNNER_ATTEMPT"):
        limits.append(parse_duration(text, "GPT_RUNNER_ATTEMPT"))
    if options.max_cost is not None:
        paid_s = options.max_cost / min(usd_per_hour.values()) * 3600
        limits.append(paid_s + AFFORDABLE_MARGIN_S)
    return int(min(limits))


def modal_secrets(
    target: ModalTarget, variables: Iterable[str], options: TargetOptions
) -> list[modal.Secret]:
    """Return a function's secrets: values of ``variables``, and those stored on Modal."""
    import modal

    values = secret_values(variables, target.cli.environ, target.checkout)
    own = [modal.Secret.from_dict({**values})] if values else []
    return [*own, *(modal.Secret.from_name(name) for name in options.modal_secrets)]


@dataclass(frozen=True)
class JobFolder:
    """A user's folder, mounted in the container, its persisted paths below SEEDS."""

    checkout: Path
    planned: PlannedFolder

    @classmethod
    def from_plan(cls, plan: Plan) -> JobFolder | None:
        """Return the plan's folder; None for a job without one."""
        return cls(Path(plan.checkout), plan.folder) if plan.folder is not None else None

    @property
    def path(self) -> Path:
        """Return the folder on this machine."""
        return Path(self.planned.host_path)

    @property
    def setup_digest(self) -> str:
        """Return the digest of the setup's layer; '' without a setup."""
        return setup_digest(self.path, self.planned.setup) if self.planned.setup else ""

    def add_setup(self, image: modal.Image) -> modal.Image:
        """Add the setup, if there is one, as a layer, which Modal builds once."""
        setup = self.planned.setup
        if not setup:
            return image
        for name in setup_files(self.path, setup):
            image = image.add_local_file(self.path / name, f"{SETUP_FOLDER}/{name}", copy=True)
        lines = (f"mkdir -p {SETUP_FOLDER} && cd {SETUP_FOLDER} && {line}" for line in setup)
        return image.run_commands(*lines)

    def mount(self, image: modal.Image) -> modal.Image:
        """Mount the files, so that an edit rebuilds nothing. Raises RunnerError for a bad file."""
        listing = list_files(self.path, self.checkout)
        listing.check()
        persisted = tuple(path.path for path in self.planned.persisted)
        is_omitted = make_omitted_test(listing, persisted)
        image = image.add_local_dir(
            self.path, self.planned.container_path, copy=False, ignore=path_filter(is_omitted)
        )
        for path in persisted:
            if files := listing.below(path):
                seeds = make_omitted_test(Listing(self.path / path, dict.fromkeys(files, 0)))
                image = image.add_local_dir(
                    self.path / path, f"{SEEDS}/{path}", copy=False, ignore=path_filter(seeds)
                )
        return image


TOKEN_VARIABLE = "SERVE_TOKEN"
PROXY_VARIABLE = "GPT_RUNNER_PROXY_AUTH"  # Modal's proxy refuses requests without its own token
CONCURRENCY = 32  # requests of a container before Modal would start another; there is only one


def deploy_server(target: ModalTarget, plan: Plan, options: ResolvedOptions) -> LaunchHandle:
    """Deploy an app with one HTTP server, which scales to zero, and record it.

    It is recorded as the run ``serve-RUN``, so that `runner runs` shows it and `runner stop` ends
    it. Raises RunnerError if the run has a server.
    """
    run = target.read(plan.run)
    if run.is_on_modal and state_of(run).alive:
        raise RunnerError(already_active_message(plan.run, "served on Modal"))
    handle = target.handle(plan, options)
    handle = replace(handle, location=_deploy(target, plan, options, handle))
    target.builds.remember()
    try:
        target.record(handle)
    except BaseException:  # an unrecorded app can't be found, and would keep billing
        calls.stop_app(handle.location)
        raise
    return handle


def _deploy(target: ModalTarget, plan: Plan, options: ResolvedOptions, handle: LaunchHandle) -> str:
    """Deploy the server, print its address and API key, and return the app's id."""
    import modal

    from runner.targets.modal import container

    checkout, environ, info = target.checkout, target.cli.environ, target.cli.info
    job = {
        "run": plan.run,
        "volume": modal_name("checkpoints", environ),
        "usd_per_hour": target.usd_per_hour(options),
        "command": plan.process.command,
        "env": dict(plan.process.environment),
    }
    image = images.define_image(checkout)
    if not target.builds.is_built(plan, info):
        with launch_errors(), build_output(not plan.as_json):
            images.build_now(image, info)
    own_token = secret_values((TOKEN_VARIABLE,), environ, checkout)[TOKEN_VARIABLE]
    token = own_token or secrets.token_urlsafe(24)
    is_behind_proxy = bool(environ.get(PROXY_VARIABLE))
    forwarded = [name for name in plan.process.secrets if name != TOKEN_VARIABLE]
    app = _new_app(handle)
    server = app.server(
        name=f"serve-{secrets.token_hex(8)}",  # an address that can't be guessed
        image=images.add_runner(image),
        include_source=False,
        env={container.JOB_VARIABLE: json.dumps(job)},
        secrets=[
            modal.Secret.from_dict({TOKEN_VARIABLE: token}),
            *modal_secrets(target, forwarded, options),
        ],
        gpu=options.gpus.modal_names() or None,
        cpu=options.machine.cores,
        memory=int(options.machine.memory_gib * 1024),
        volumes=target.mounts(),
        compute_region=options.region.split(",") if options.region else None,
        port=container.PORT,
        startup_timeout=container.STARTUP_TIMEOUT_S,
        scaledown_window=SCALEDOWN_S,
        target_concurrency=CONCURRENCY,
        max_containers=1,
        # Without the proxy's token, anyone with the address starts a machine; our server checks
        # the key that OpenAI's clients send.
        unauthenticated=not is_behind_proxy,
    )(container.ServeJob)
    with launch_errors():
        app.deploy(name=f"{PROJECT}-{handle.identity[:12]}")
        url = server.get_url()
    app_id = str(app.app_id)
    if not url:
        calls.stop_app(app_id)
        raise RunnerError("Modal gave the server no address; try again")
    info(f"serving at {url}/v1 (OpenAI-compatible API) and {url} (web page)")
    key = "SERVE_TOKEN of your environment" if own_token else f"{token} (shown only now)"
    info(f"API key: {key}")
    if is_behind_proxy:
        info("requests also need Modal-Key and Modal-Secret (docs/use_your_model.md)")
    return app_id
