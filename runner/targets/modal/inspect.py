"""What the target cloud looks at before a plan: the run and the dataset on Modal, prices, the image, a command's folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from job.paths import VOLUMES, VolumePaths
from job.pretrained import weights_of
from job.run_record import RunStatus
from runner.console import CliContext
from runner.errors import usage
from runner.plan import Volume
from runner.planning.packaging import list_files, setup_digest, setup_lines
from runner.pricing import prices
from runner.project import git_state, secret_names, volumes
from runner.request import Request, UserCommand, folder_name
from runner.runs.divergence import local_state
from runner.runs.store import is_dataset_ready, recipe_of, step_of
from runner.targets.modal import account, image, runs
from runner.targets.modal.app import check_kept, check_there
from runner.targets.modal.client import check_proxy
from runner.targets.modal.options import resolve_options
from runner.targets.modal.plan import ModalState
from runner.targets.modal.volume import LateFiles, modal_name


def inspect_modal(
    cli: CliContext, checkout: Path, files: Mapping[str, LateFiles], request: Request
) -> ModalState:
    """Look at the run's records and the dataset on Modal, at the image's last build, and at a command's folder."""
    locations = volumes(checkout, {})
    options = resolve_options(request)
    check_there(options.own_secrets, cli.environ, checkout)
    has_account = account.is_set_up(cli.environ)
    built, why = image.describe(checkout, locations.cache, account.account_name(cli.environ))
    found: dict[str, Any] = (
        _look(cli, checkout, files, request) if has_account else {"dataset_ready": None}
    )
    if has_account:
        check_kept(options.modal_secrets)
    if request.command is not None:
        found |= _look_at_folder(cli, checkout, request.command)
    return ModalState(
        target="cloud",
        checkout=str(checkout),
        workspace=image.WORKSPACE,
        volumes=tuple(
            Volume(
                name,
                str(getattr(locations, name)),
                f"/vol/{name}",
                remote=modal_name(name, cli.environ),
            )
            for name in VOLUMES
        ),
        mounts=False,
        image=f"Dockerfile, {why}" if built else "Dockerfile",
        image_built=built,
        why_build=why,
        secrets=secret_names(cli.environ, checkout),
        environment=tuple(
            {**VolumePaths.under(Path("/vol")).environment(), "PYTHONPATH": image.WORKSPACE}.items()
        ),
        git=tuple(
            (git_state(request.command.folder if request.command else checkout) or {}).items()
        ),
        account=has_account,
        **found,
    )


def _look(
    cli: CliContext, checkout: Path, files: Mapping[str, LateFiles], request: Request
) -> dict[str, Any]:
    """What the volumes say of the run and of the dataset."""
    check_proxy(cli.environ)  # before the prices are asked for, which are waited for
    checkpoints, data = files["checkpoints"], files["data"]
    dataset = request.settings.data.dataset if request.settings else None
    weights = weights_of(request.settings)
    with ThreadPoolExecutor(6) as pool:
        live = pool.submit(prices.live_prices)
        # Once, before all that read it: each would wait for a Modal that does not answer.
        _ = checkpoints.opened
        step = pool.submit(step_of, checkpoints, request.run)
        run = pool.submit(runs.read_run, checkpoints, request.run)
        before = (
            pool.submit(recipe_of, checkpoints, request.run)
            if request.job.name == "train" and request.settings is not None
            else None
        )
        ready = pool.submit(is_dataset_ready, data, dataset) if dataset else None
        there = pool.submit(files["cache"].size, weights.weights) if weights else None
    found, busy = run.result(), None
    writes = request.job.writes_run or request.detach
    if writes and found.is_of_cloud:
        state = runs.state_of(found)
        busy = f"{state.status} in the cloud" if state.alive else None
    now = time.time()
    return {
        "live": live.result(),
        "busy": busy,
        "step": step.result(),
        "dataset_ready": ready.result() if ready else None,
        "weights_ready": there.result() is not None if there else None,
        "seconds": found.ledger.seconds(now) if request.job.writes_run else 0.0,
        "cost": found.ledger.cost(now) if request.job.writes_run else 0.0,
        "attempts": len(found.ledger.attempts) if request.job.writes_run else 0,
        "reached": runs.reached(found),
        "begun_with": before.result() if before else None,
        "finished": found.record is not None and found.record.status == RunStatus.FINISHED,
        "record": found.record,
        "other": local_state(cli, checkout, request.run, found.record)
        if request.job.writes_run
        else None,
    }


def _look_at_folder(cli: CliContext, checkout: Path, command: UserCommand) -> dict[str, Any]:
    """What of the command's folder goes there, and what its image has besides."""
    lines = setup_lines(command)
    listing = list_files(command.folder, checkout)
    listing.check()
    summary = listing.summary()
    if not summary.files:
        raise usage(
            f"nothing of {command.folder} would be in the cloud: it is empty, or .gitignore or .dockerignore "
            "names all that is in it"
        )
    account_name = account.account_name(cli.environ)
    return {
        "folder": f"/job/{folder_name(command.folder)}",
        "shipped": summary,
        "setup": lines,
        "setup_built": not lines
        or image.has_setup(
            volumes(checkout, {}).cache, account_name, setup_digest(command.folder, lines)
        ),
    }
