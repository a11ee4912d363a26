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
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from job.paths import VOLUMES
from job.trackers import image_packages
from runner.errors import ModalUnavailable, RunnerError, usage
from runner.plan import FolderState, ImageState, PriorRun
from runner.planning.gpus import live_prices
from runner.planning.packaging import setup_digest
from runner.project import volumes
from runner.request import Request, TrainRequest, UserCommand
from runner.runs.find import local_state
from runner.runs.volume import recipe_of, step_of
from runner.targets.base import inspect_target, remote_environment, uploaded_folder
from runner.targets.docker import IMAGE_VARIABLE
from runner.targets.modal import image, runs
from runner.targets.modal.calls import live_apps
from runner.targets.modal.client import check_proxy, check_reachable, translate_modal_errors
from runner.targets.modal.options import resolve_options
from runner.targets.modal.plan import ModalState
from runner.targets.modal.volume import (
    ListedFolder,
    ModalVolumeFiles,
    check_environment,
    is_old_version,
    modal_name,
)

if TYPE_CHECKING:
    from runner.targets.modal.target import ModalTarget

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
    target: ModalTarget, request: Request, early: EarlyRequests | None = None
) -> ModalState:
    """Return the state of Modal for one request; change nothing."""
    cli, options, is_configured = target.cli, resolve_options(request), target.is_configured()
    packages = image_packages(request.trackers)
    is_built, build = target.builds.describe()
    if is_built and packages and not target.builds.has_layer(" ".join(packages)):
        is_built, build = False, f"adds {' '.join(packages)}"
    source = cli.environ.get(IMAGE_VARIABLE) or "Dockerfile"
    details: dict[str, Any] = {}
    if is_configured and early is None:  # before the threads of inspect_target
        early = target.early_requests()

    def find_run() -> PriorRun:
        if early is None:
            return PriorRun()
        run, values = _find_run(target, request, early)
        details.update(values)
        return run

    names = {name: modal_name(name, cli.environ) for name in VOLUMES}
    environment = remote_environment(volumes(target.checkout, {}), names, reports_end=True)
    state = inspect_target(target, cli, target.checkout, request, environment, find_run)
    if is_configured:
        for name in options.modal_secrets:
            _check_modal_secret(name, f"--secret {name}", "KEY=VALUE")
        if cli.environ.get(IMAGE_VARIABLE) and (own := cli.environ.get(image.REGISTRY_SECRET)):
            keys = "REGISTRY_USERNAME=... REGISTRY_PASSWORD=..."
            _check_modal_secret(own, f"{image.REGISTRY_SECRET}={own}", keys)
    state = replace(
        state,
        image=ImageState(f"{source}, {build}" if is_built else source, is_built, packages),
        folder=_inspect_folder(target, request.command) if request.command else None,
        is_configured=is_configured,
    )
    return ModalState(**vars(state), build_reason=build, **details)


def _find_run(
    target: ModalTarget, request: Request, early: EarlyRequests
) -> tuple[PriorRun, dict[str, Any]]:
    """Return the run on its volume, and the further values of `ModalState`."""
    for volume in early.volumes:  # raises the error of a request
        volume.result()
    files, name, writes_run = target.files("checkpoints"), request.run, request.job.writes_run
    with ThreadPoolExecutor() as pool:
        folder = ListedFolder(files, name)
        step = pool.submit(step_of, folder, name)
        records = pool.submit(runs.read_run, folder, name)
        is_training = isinstance(request, TrainRequest)
        recipe = pool.submit(recipe_of, folder, name) if is_training else None
    run, now = records.result(), time.time()
    active, found = None, None
    is_unconfirmed = False
    if writes_run or request.detach:
        run, state = found = runs.find_active(run, early.apps.result)
        if run.is_on_modal and state.alive:
            is_unconfirmed = run.is_unconfirmed
            active = None if is_unconfirmed else f"{state.status} on Modal"
    prior = PriorRun(
        active=active,
        step=step.result(),
        attempts=len(run.log.attempts) if writes_run else 0,
        recipe=recipe.result() if recipe else None,
        record=run.record,
        other=local_state(target.cli, target.checkout, name, run.record) if writes_run else None,
    )
    return prior, {
        "live": early.prices.result(),
        "active_run": found,
        "unconfirmed": is_unconfirmed,
        "seconds": run.log.seconds(now) if writes_run else 0.0,
        "cost": run.log.cost(now) if writes_run else 0.0,
        "reached": runs.reached_limit(run),
    }


def _inspect_folder(target: ModalTarget, command: UserCommand) -> FolderState:
    """Return the command's folder. Raises RunnerError if it has no file to upload."""
    folder = uploaded_folder(command, target.checkout)
    if folder.manifest is None or not folder.manifest.files:
        raise usage(
            f"{command.folder} has no files to upload: it is empty, or .gitignore and "
            ".dockerignore exclude all of them"
        )
    digest = setup_digest(command.folder, folder.setup)
    return replace(folder, is_setup_built=not folder.setup or target.builds.has_layer(digest))


def _check_modal_secret(name: str, option: str, keys: str) -> None:
    """Raise RunnerError, exit status 2, for a secret that Modal does not have."""
    import modal

    try:
        with translate_modal_errors():
            modal.Secret.from_name(name).hydrate()
    except FileNotFoundError:
        raise usage(
            f"{option}: Modal has no secret of that name; create it with "
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
