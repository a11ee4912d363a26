"""Inspect Modal before a plan: the run and its dataset, prices, the image, a command's folder.

`runner doctor` runs it as a process, which prints whether Modal accepts the token:

    python -m runner.targets.modal.inspect

{"problem": "", "volumes": {"gpt-runner-data": "exists", "gpt-runner-cache": "missing"}}
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from job.paths import VOLUMES, VolumePaths
from job.pretrained import weights_of
from job.trackers import image_packages
from runner.console import CliContext
from runner.errors import ModalUnavailable, RunnerError, usage
from runner.plan import FolderState, ImageState, JobEnvironment, PriorRun, Volume
from runner.planning.packaging import list_files, setup_digest, setup_lines
from runner.pricing.gpus import live_prices
from runner.project import check_forwarded_env, git_state, secret_names, volumes
from runner.request import Request, UserCommand, folder_name
from runner.runs.find import local_state
from runner.runs.store import is_dataset_ready, recipe_of, step_of
from runner.targets.docker import IMAGE_VARIABLE
from runner.targets.modal import TARGET_NAME, image, runs
from runner.targets.modal.calls import live_apps
from runner.targets.modal.client import (
    account_id,
    check_proxy,
    check_reachable,
    is_configured,
    translate_modal_errors,
)
from runner.targets.modal.options import resolve_options
from runner.targets.modal.plan import ModalState
from runner.targets.modal.volume import (
    ListedFolder,
    ModalVolumeFiles,
    check_environment,
    is_old_version,
    modal_name,
)

T = TypeVar("T")


class EarlyRequests:
    """The requests of every launch, which do not depend on its recipe."""

    def __init__(self, environ: Mapping[str, str], files: Iterable[ModalVolumeFiles]) -> None:
        # Before the threads, which would find it partly imported; its import takes half of the CPU
        # time of a launch.
        import modal  # noqa: F401

        check_proxy(environ)
        # Not daemon threads: if the recipe has a mistake, they end before the client is closed.
        pool = ThreadPoolExecutor()
        self.volumes = [pool.submit(getattr, volume, "volume") for volume in files]
        self.apps = pool.submit(_ask, live_apps, environ)
        self.prices = pool.submit(_ask, live_prices, environ)
        pool.shutdown(wait=False)


def _ask(request: Callable[[], T], environ: Mapping[str, str]) -> T:
    """Return ``request()``. Raises RunnerError offline, where the client retries for a minute."""
    from modal.config import config

    check_reachable(environ, str(config.get("server_url")))
    return request()


def inspect_modal(
    cli: CliContext,
    checkout: Path,
    files: Mapping[str, ModalVolumeFiles],
    request: Request,
    early: EarlyRequests | None = None,
) -> ModalState:
    """Return the state of Modal for one request; change nothing."""
    local = volumes(checkout, {})
    options = resolve_options(request)
    check_forwarded_env(options.forwarded_env, cli.environ, checkout)
    git_folder = request.command.folder if request.command else checkout
    pool = ThreadPoolExecutor(1)
    git = pool.submit(git_state, git_folder)
    has_account = is_configured(cli.environ)
    account, packages = account_id(cli.environ), image_packages(request.trackers)
    is_built, build = image.describe(checkout, local.cache, account)
    if is_built and packages and not image.has_setup(local.cache, account, " ".join(packages)):
        is_built, build = False, f"adds {' '.join(packages)}"
    details: dict[str, Any] = {"is_dataset_ready": None}
    if has_account:
        early = early or EarlyRequests(cli.environ, files.values())
        details = _inspect_volumes(cli, checkout, files, request, early)
        for name in options.modal_secrets:
            _check_modal_secret(name, f"--secret {name}", "KEY=VALUE")
        if cli.environ.get(IMAGE_VARIABLE) and (own := cli.environ.get(image.REGISTRY_SECRET)):
            keys = "REGISTRY_USERNAME=... REGISTRY_PASSWORD=..."
            _check_modal_secret(own, f"{image.REGISTRY_SECRET}={own}", keys)
    if request.command is not None:
        details |= _inspect_folder(cli, checkout, request.command)
    environment = {
        **VolumePaths.under(Path("/vol")).environment(),
        "PYTHONPATH": image.WORKSPACE,
    }
    source = cli.environ.get(IMAGE_VARIABLE) or "Dockerfile"
    return ModalState(
        target=TARGET_NAME,
        checkout=str(checkout),
        environment=JobEnvironment(
            workspace=image.WORKSPACE,
            volumes=tuple(
                Volume(
                    name,
                    str(getattr(local, name)),
                    f"/vol/{name}",
                    remote=modal_name(name, cli.environ),
                )
                for name in VOLUMES
            ),
            can_mount=False,
            variables=tuple(environment.items()),
            reports_end=True,
        ),
        image=ImageState(f"{source}, {build}" if is_built else source, is_built, packages),
        why_build=build,
        secrets=secret_names(cli.environ, checkout),
        git=tuple((git.result() or {}).items()),
        is_configured=has_account,
        **details,
    )


def _inspect_volumes(
    cli: CliContext,
    checkout: Path,
    files: Mapping[str, ModalVolumeFiles],
    request: Request,
    early: EarlyRequests,
) -> dict[str, Any]:
    """Return what the volumes hold of the run and its dataset."""
    for volume in early.volumes:  # raises the error of a request
        volume.result()
    dataset = request.settings.data.dataset if request.settings else None
    weights = weights_of(request.settings)
    writes_run = request.job.writes_run
    with ThreadPoolExecutor() as pool:
        ready = pool.submit(is_dataset_ready, files["data"], dataset) if dataset else None
        weights_size = pool.submit(files["cache"].size, weights.weights) if weights else None
        folder = ListedFolder(files["checkpoints"], request.run)
        step = pool.submit(step_of, folder, request.run)
        records = pool.submit(runs.read_run, folder, request.run)
        trains = request.job.name == "train" and request.settings is not None
        before = pool.submit(recipe_of, folder, request.run) if trains else None
    run, now = records.result(), time.time()
    is_alive, status, active = False, None, None
    if writes_run or request.detach:
        run, state = active = runs.find_active(run, early.apps.result)
        is_alive, status = run.is_on_modal and state.alive, state.status
    unconfirmed = is_alive and run.is_unconfirmed
    return {
        "live": early.prices.result(),
        "found": active,
        "unconfirmed": unconfirmed,
        "is_dataset_ready": ready.result() if ready else None,
        "is_pretrained_cached": weights_size.result() is not None if weights_size else None,
        "seconds": run.log.seconds(now) if writes_run else 0.0,
        "cost": run.log.cost(now) if writes_run else 0.0,
        "reached": runs.reached_limit(run),
        "run": PriorRun(
            active=f"{status} in the cloud" if is_alive and not unconfirmed else None,
            step=step.result(),
            attempts=len(run.log.attempts) if writes_run else 0,
            recipe=before.result() if before else None,
            record=run.record,
            other=local_state(cli, checkout, request.run, run.record) if writes_run else None,
        ),
    }


def _inspect_folder(cli: CliContext, checkout: Path, command: UserCommand) -> dict[str, Any]:
    """Return the files of the command's folder to upload, and the state of its setup."""
    lines = setup_lines(command)
    listing = list_files(command.folder, checkout)
    listing.check(command.script)
    summary = listing.summary()
    if not summary.files:
        raise usage(
            f"{command.folder} has no files to upload: it is empty, or .gitignore and "
            ".dockerignore exclude all of them"
        )
    cache, account = volumes(checkout, {}).cache, account_id(cli.environ)
    setup_built = not lines or image.has_setup(cache, account, setup_digest(command.folder, lines))
    folder = FolderState(
        f"/job/{folder_name(command.folder)}",
        manifest=summary,
        setup=lines,
        is_setup_built=setup_built,
    )
    return {"folder": folder}


def _check_modal_secret(name: str, where: str, keys: str) -> None:
    """Raise RunnerError, exit status 2, for a secret that Modal does not have."""
    import modal

    try:
        with translate_modal_errors():
            modal.Secret.from_name(name).hydrate()
    except FileNotFoundError:
        raise usage(
            f"{where}: Modal has no secret of that name; create it with "
            f"`modal secret create {name} {keys}`"
        ) from None


def diagnose() -> dict[str, object]:
    """Return whether Modal accepts the token, and the state of the three volumes."""
    states: dict[str, str] = {}
    for volume in VOLUMES:
        name = modal_name(volume, os.environ)
        try:
            states[name] = _volume_state(name)
        except (RunnerError, ModalUnavailable) as error:
            return {"problem": str(getattr(error, "message", error)), "volumes": states}
    return {"problem": "", "volumes": states}


def _volume_state(name: str) -> str:
    import modal

    try:
        with translate_modal_errors():
            modal.Volume.from_name(name, version=2).hydrate()
    except FileNotFoundError as error:
        check_environment(error)
        return "missing"
    except RunnerError as error:
        if is_old_version(error):
            return "is of Modal's version 1; the runner uses version 2"
        raise
    return "exists"


if __name__ == "__main__":
    print(json.dumps(diagnose()))
