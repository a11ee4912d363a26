"""Inspect Modal before a plan: the run and its dataset, prices, the image, a command's folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from job.paths import VOLUMES, VolumePaths
from job.pretrained import weights_of
from runner.console import CliContext
from runner.errors import usage
from runner.plan import FolderState, ImageState, JobEnvironment, PriorRun, Volume
from runner.planning.packaging import list_files, setup_digest, setup_lines
from runner.pricing import prices
from runner.project import git_state, secret_names, volumes
from runner.request import Request, UserCommand, folder_name
from runner.runs.divergence import local_state
from runner.runs.store import is_dataset_ready, recipe_of, step_of
from runner.targets.modal import TARGET_NAME, account, image, runs
from runner.targets.modal.app import check_modal_secrets, check_own_secrets
from runner.targets.modal.client import check_proxy
from runner.targets.modal.options import resolve_options
from runner.targets.modal.plan import ModalState
from runner.targets.modal.volume import LazyVolumeFiles, modal_name


def inspect_modal(
    cli: CliContext, checkout: Path, files: Mapping[str, LazyVolumeFiles], request: Request
) -> ModalState:
    """Return the state of Modal for one request; change nothing."""
    local = volumes(checkout, {})
    options = resolve_options(request)
    check_own_secrets(options.own_secrets, cli.environ, checkout)
    has_account = account.is_configured(cli.environ)
    is_built, build = image.describe(checkout, local.cache, account.account_id(cli.environ))
    details: dict[str, Any] = {"is_dataset_ready": None}
    if has_account:
        details = _inspect_volumes(cli, checkout, files, request)
        check_modal_secrets(options.modal_secrets)
    if request.command is not None:
        details |= _inspect_folder(cli, checkout, request.command)
    environment = {
        **VolumePaths.under(Path("/vol")).environment(),
        "PYTHONPATH": image.WORKSPACE,
    }
    git_folder = request.command.folder if request.command else checkout
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
        ),
        image=ImageState(f"Dockerfile, {build}" if is_built else "Dockerfile", is_built),
        why_build=build,
        secrets=secret_names(cli.environ, checkout),
        git=tuple((git_state(git_folder) or {}).items()),
        is_configured=has_account,
        **details,
    )


def _inspect_volumes(
    cli: CliContext, checkout: Path, files: Mapping[str, LazyVolumeFiles], request: Request
) -> dict[str, Any]:
    """Return what the volumes hold of the run and its dataset."""
    check_proxy(cli.environ)  # before the thread that asks for prices, which is waited for
    checkpoints, data = files["checkpoints"], files["data"]
    dataset = request.settings.data.dataset if request.settings else None
    weights = weights_of(request.settings)
    with ThreadPoolExecutor(6) as pool:
        live = pool.submit(prices.live_prices)
        _ = checkpoints.opened  # once, before all that read it: each would wait for a timeout
        step = pool.submit(step_of, checkpoints, request.run)
        records = pool.submit(runs.read_run, checkpoints, request.run)
        trains = request.job.name == "train" and request.settings is not None
        before = pool.submit(recipe_of, checkpoints, request.run) if trains else None
        ready = pool.submit(is_dataset_ready, data, dataset) if dataset else None
        weights_size = pool.submit(files["cache"].size, weights.weights) if weights else None
    run, now = records.result(), time.time()
    writes_run = request.job.writes_run
    is_alive, status = False, None
    if (writes_run or request.detach) and run.is_on_modal:
        state = runs.state_of(run)
        is_alive, status = state.alive, state.status
    unconfirmed = is_alive and run.is_unconfirmed
    return {
        "live": live.result(),
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
    listing.check()
    summary = listing.summary()
    if not summary.files:
        raise usage(
            f"{command.folder} has no files to upload: it is empty, or .gitignore and "
            ".dockerignore exclude all of them"
        )
    cache, account_id = volumes(checkout, {}).cache, account.account_id(cli.environ)
    setup_built = not lines or image.has_setup(
        cache, account_id, setup_digest(command.folder, lines)
    )
    folder = FolderState(
        f"/job/{folder_name(command.folder)}",
        manifest=summary,
        setup=lines,
        is_setup_built=setup_built,
    )
    return {"folder": folder}
