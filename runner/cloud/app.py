"""The Modal app of one launch: made, started detached, and left.

One app has one function and one call. What the function is, is said here; what it does, in inside.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.locations import VOLUMES
from runner.cloud import calls
from runner.cloud import image as images
from runner.cloud.deadlines import RETRIES
from runner.cloud.given_folder import GivenFolder
from runner.cloud.gpu_kinds import BY_NAME
from runner.cloud.modal_errors import in_our_words
from runner.cloud.options import Options
from runner.cloud.secrets import modal_secrets
from runner.cloud.volumes import open_volume
from runner.errors import RunnerError

NAME = "gpt-runner"
# Seconds that a container may take to start: pulling an image of 10 GB, and 8 GPUs that answer late. Modal's own
# default is the function's timeout, so that a container that never starts would be waited for a day.
STARTUP_SECONDS = 1200

RETRY_SECONDS = 1.0  # before the second attempt; doubled for each further one, to Modal's limit of 60


@dataclass(frozen=True)
class Call:
    """What was started."""

    app: str
    id: str


def start(
    job: Mapping[str, Any],
    options: Options,
    own_secrets: Sequence[str],
    checkout: Path,
    environ: Mapping[str, str],
    attempt_timeout: int,
    on_image: Callable[[], None],
    say: Callable[[str], None],
    is_built: bool,
    show_build: bool,
    given: GivenFolder | None = None,
) -> Call:
    """Build the image where it is not cached, create the function and spawn its one call, detached.

    ``on_image`` is called when the image is there. Raises RunnerError with what Modal says.
    """
    import modal

    from runner.cloud.inside import run_job

    volumes: Any = {f"/vol/{name}": open_volume(name, environ) for name in VOLUMES}
    image = images.build(checkout, given)
    app = modal.App(NAME, tags={"project": NAME, "run": str(job["run"])[:63], "job": str(job["job"])})
    body: Any = run_job
    if options.nodes > 1:
        rdma = all(BY_NAME[name].rdma for name in options.gpus.names)
        body = modal.clustered(size=options.nodes, rdma=rdma)(run_job)
    function = app.function(
        name=str(job["job"]),
        image=image,
        gpu=options.gpus.each() or None,
        cpu=options.machine.cores,
        memory=int(options.machine.memory_gib * 1024),
        volumes=volumes,
        secrets=modal_secrets(own_secrets, options.modal_secrets, environ, checkout),
        region=options.region.split(",") if options.region else None,
        timeout=attempt_timeout,
        startup_timeout=STARTUP_SECONDS,
        retries=modal.Retries(
            max_retries=RETRIES, initial_delay=RETRY_SECONDS, backoff_coefficient=2.0, max_delay=60.0
        ),
        single_use_containers=True,
        max_containers=1 if options.nodes == 1 else None,
    )(body)
    if not is_built:
        with explained(), build_log(show_build):
            images.make(image, say)
    call = None
    try:
        with explained(), app.run(detach=True):
            on_image()
            call = function.spawn({**job, "app": app.app_id})
        if call is None:  # Ctrl-C: the client leaves its block quietly where the app is detached
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        if call is not None:
            calls.cancel(str(call.object_id), kill=True)  # nobody knows of it yet, and it would go on costing
        raise
    return Call(str(app.app_id), str(call.object_id))


@contextmanager
def explained() -> Iterator[None]:
    """Modal's errors in our words, those of a build too."""
    from modal import exception

    try:
        with in_our_words():
            yield
    except RunnerError:
        raise
    except exception.RemoteError as error:
        broken_off = images.BROKEN_OFF in str(error)
        advice = "type the same again" if broken_off else "`docker compose build` builds the same here"
        raise RunnerError(f"Modal could not build the image: {error}; {advice}") from error
    except FileNotFoundError as error:  # a secret by a name that Modal does not have, for example
        raise RunnerError(f"Modal does not find it: {error}") from error
    except OSError as error:
        raise RunnerError(
            f"Modal can't be reached: {error}; nothing was started, type the same again"
        ) from error


@contextmanager
def build_log(show: bool) -> Iterator[None]:
    """Modal's own words about a build, on stderr: stdout is the job's."""
    if not show:
        yield
        return
    import modal

    with redirect_stdout(sys.stderr), modal.enable_output():
        yield


def attempt_limit(environ: Mapping[str, str] = os.environ) -> float:
    """Seconds of one attempt: Modal's limit, or less by GPT_RUNNER_ATTEMPT, for example 6h."""
    from runner.cloud.deadlines import LONGEST_ATTEMPT
    from runner.cloud.durations import seconds

    given = environ.get("GPT_RUNNER_ATTEMPT")
    return min(LONGEST_ATTEMPT, seconds(given, "GPT_RUNNER_ATTEMPT")) if given else LONGEST_ATTEMPT
