"""`runner cloud serve`: a deployed app with one HTTP server, which scales to zero.

The deployment is recorded as the run ``serve-RUN``, so that `runner runs` shows it and
`runner stop` ends it.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from job.paths import VOLUMES
from runner.errors import RunnerError
from runner.plan import Plan
from runner.planning.plan import already_active_message
from runner.project import PROJECT, secret_values
from runner.target import LaunchHandle
from runner.targets.modal import calls
from runner.targets.modal import image as images
from runner.targets.modal.app import (
    build_output,
    launch_errors,
    modal_secrets,
)
from runner.targets.modal.calls import MAX_TAG_LENGTH
from runner.targets.modal.client import account_id
from runner.targets.modal.container import (
    JOB_VARIABLE,
    PORT,
    STARTUP_TIMEOUT_S,
    ServeJob,
)
from runner.targets.modal.options import ResolvedOptions
from runner.targets.modal.plan import SCALEDOWN_S
from runner.targets.modal.runs import state_of
from runner.targets.modal.volume import modal_name, open_volume

if TYPE_CHECKING:
    from runner.targets.modal.target import ModalTarget

TOKEN_VARIABLE = "SERVE_TOKEN"
PROXY_VARIABLE = "GPT_RUNNER_PROXY_AUTH"  # Modal's proxy refuses requests without its own token
CONCURRENCY = 32  # requests of a container before Modal would start another; there is only one


def deploy_server(target: ModalTarget, plan: Plan, options: ResolvedOptions) -> LaunchHandle:
    """Deploy a server and record it. Raises RunnerError if the run has one."""
    run = target.read(plan.run)
    if run.is_on_modal and state_of(run).alive:
        raise RunnerError(already_active_message(plan.run, "served on Modal"))
    handle = target.handle(plan, options)
    app = _deploy(target, plan, options, handle.identity)
    images.remember(target.checkout, target.volumes.cache, account_id(target.cli.environ))
    handle = replace(handle, location=app)
    try:
        target.record(handle)
    except BaseException:  # an unrecorded app can't be found, and would keep billing
        calls.stop_app(app)
        raise
    return handle


def _deploy(target: ModalTarget, plan: Plan, options: ResolvedOptions, launch_id: str) -> str:
    """Deploy the server and return the app's id. The address and a new API key are shown."""
    import modal

    checkout, environ, info = target.checkout, target.cli.environ, target.cli.info
    job = {
        "run": plan.run,
        "volume": modal_name("checkpoints", environ),
        "usd_per_hour": target.usd_per_hour(options),
        "command": plan.process.command,
        "env": dict(plan.process.environment),
    }
    image = images.define_image(checkout)
    if not target.is_image_built(plan):
        with launch_errors(), build_output(not plan.as_json):
            images.build_now(image, info)
    given = secret_values((TOKEN_VARIABLE,), environ, checkout)[TOKEN_VARIABLE]
    token = given or secrets.token_urlsafe(24)
    is_behind_proxy = bool(environ.get(PROXY_VARIABLE))
    own = [name for name in plan.process.secrets if name != TOKEN_VARIABLE]
    hidden = [
        modal.Secret.from_dict({TOKEN_VARIABLE: token}),
        *modal_secrets(own, options.modal_secrets, environ, checkout),
    ]
    volumes: Any = {f"/vol/{name}": open_volume(name, environ) for name in VOLUMES}
    tags = {"project": PROJECT, "run": plan.run, "job": plan.job, "launch": launch_id}
    app = modal.App(PROJECT, tags={name: value[:MAX_TAG_LENGTH] for name, value in tags.items()})
    server = app.server(
        name=f"serve-{secrets.token_hex(8)}",  # an address that can't be guessed
        image=images.add_runner(image),
        include_source=False,
        env={JOB_VARIABLE: json.dumps(job)},
        secrets=hidden,
        gpu=options.gpus.modal_names() or None,
        cpu=options.machine.cores,
        memory=int(options.machine.memory_gib * 1024),
        volumes=volumes,
        compute_region=options.region.split(",") if options.region else None,
        port=PORT,
        startup_timeout=STARTUP_TIMEOUT_S,
        scaledown_window=SCALEDOWN_S,
        target_concurrency=CONCURRENCY,
        max_containers=1,
        # Without the proxy's token, anyone with the address starts a machine; our server checks
        # the key that OpenAI's clients send.
        unauthenticated=not is_behind_proxy,
    )(ServeJob)
    with launch_errors():
        app.deploy(name=f"{PROJECT}-{launch_id[:12]}")
        url = server.get_url()
    app_id = str(app.app_id)
    if not url:
        calls.stop_app(app_id)
        raise RunnerError("Modal gave the server no address; try again")
    info(f"serving at {url}/v1 (OpenAI-compatible API) and {url} (web page)")
    key = "SERVE_TOKEN of your environment" if given else f"{token} (shown only now)"
    info(f"API key: {key}")
    if is_behind_proxy:
        info("requests also need Modal-Key and Modal-Secret (docs/use_your_model.md)")
    return app_id
