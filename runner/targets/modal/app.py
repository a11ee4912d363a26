"""The Modal app of one launch: made, started detached, and left.

One app has one function and one call. What the function is, is said here; what it does, in inside.py.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.paths import VOLUMES
from runner.errors import RunnerError, usage
from runner.plan import Plan
from runner.planning.command_plan import SEEDS
from runner.planning.packaging import (
    SETUP_FOLDER,
    Listing,
    is_left_out,
    list_files,
    setup_digest,
    setup_files,
)
from runner.pricing.gpus import BY_NAME
from runner.project import read_dotenv, secret_values
from runner.targets.modal import calls
from runner.targets.modal import image as images
from runner.targets.modal.client import translate_modal_errors
from runner.targets.modal.deadlines import RETRIES
from runner.targets.modal.image import matcher
from runner.targets.modal.options import ResolvedOptions
from runner.targets.modal.volume import open_volume

if TYPE_CHECKING:
    import modal

NAME = "gpt-runner"

# Seconds that a container may take to start: pulling an image of 10 GB, and 8 GPUs that answer late. Modal's own
# default is the function's timeout, so that a container that never starts would be waited for a day.
STARTUP_SECONDS = 1200

RETRY_SECONDS = (
    1.0  # before the second attempt; doubled for each further one, to Modal's limit of 60
)


@dataclass(frozen=True)
class Call:
    """What was started."""

    app: str
    id: str


def start(
    job: Mapping[str, Any],
    options: ResolvedOptions,
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

    from runner.targets.modal.entrypoint import run_job

    volumes: Any = {f"/vol/{name}": open_volume(name, environ) for name in VOLUMES}
    image = images.build(checkout, given)
    app = modal.App(
        NAME, tags={"project": NAME, "run": str(job["run"])[:63], "job": str(job["job"])}
    )
    body: Any = run_job
    if options.nodes > 1:
        rdma = all(BY_NAME[name].rdma for name in options.gpus.names)
        body = modal.clustered(size=options.nodes, rdma=rdma)(run_job)
    function = app.function(
        name=str(job["job"]),
        image=image,
        gpu=options.gpus.modal_names() or None,
        cpu=options.machine.cores,
        memory=int(options.machine.memory_gib * 1024),
        volumes=volumes,
        secrets=modal_secrets(own_secrets, options.modal_secrets, environ, checkout),
        region=options.region.split(",") if options.region else None,
        timeout=attempt_timeout,
        startup_timeout=STARTUP_SECONDS,
        retries=modal.Retries(
            max_retries=RETRIES,
            initial_delay=RETRY_SECONDS,
            backoff_coefficient=2.0,
            max_delay=60.0,
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
            calls.cancel(
                str(call.object_id), kill=True
            )  # nobody knows of it yet, and it would go on costing
        raise
    return Call(str(app.app_id), str(call.object_id))


@contextmanager
def explained() -> Iterator[None]:
    """Modal's errors in our words, those of a build too."""
    from modal import exception

    try:
        with translate_modal_errors():
            yield
    except RunnerError:
        raise
    except exception.RemoteError as error:
        broken_off = images.BROKEN_OFF in str(error)
        advice = (
            "type the same again" if broken_off else "`docker compose build` builds the same here"
        )
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
    from runner.format import parse_duration
    from runner.targets.modal.deadlines import LONGEST_ATTEMPT

    given = environ.get("GPT_RUNNER_ATTEMPT")
    return (
        min(LONGEST_ATTEMPT, parse_duration(given, "GPT_RUNNER_ATTEMPT"))
        if given
        else LONGEST_ATTEMPT
    )


def check_there(names: Iterable[str], environ: Mapping[str, str], checkout: Path) -> None:
    """RunnerError, exit code 2, for a name that has no value here or in .env."""
    names = tuple(names)
    kept = read_dotenv(checkout, names)
    for name in names:
        if not environ.get(name) and not kept.get(name):
            raise usage(
                f"--env {name}: there is no {name} in the environment or in .env; write --env {name}=VALUE"
            )


def check_kept(names: Iterable[str]) -> None:
    """RunnerError, exit code 2, for a secret that Modal does not keep: a build of the image would come first."""
    import modal

    for name in names:
        try:
            with translate_modal_errors():
                modal.Secret.from_name(name).hydrate()
        except FileNotFoundError:
            raise usage(
                f"--secret {name}: Modal keeps no secret of that name; to make it, type: "
                f"modal secret create {name} KEY=VALUE"
            ) from None


def modal_secrets(
    own: Iterable[str], named: Iterable[str], environ: Mapping[str, str], checkout: Path
) -> list[modal.Secret]:
    """The values of ``own`` variables, and Modal's own secrets by name, as its functions take them."""
    import modal

    values: dict[str, str | None] = {**secret_values(own, environ, checkout)}
    found = [modal.Secret.from_dict(values)] if values else []
    return [*found, *(modal.Secret.from_name(name) for name in named)]


@dataclass(frozen=True)
class GivenFolder:
    """``folder`` is to be seen at ``inside``, its ``kept`` paths below SEEDS instead."""

    checkout: Path
    folder: Path
    inside: str
    setup: tuple[str, ...]
    kept: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan) -> GivenFolder | None:
        """The folder of the plan; None for a job that has none."""
        if plan.folder is None:
            return None
        planned = plan.folder
        kept = tuple(keep.path for keep in planned.kept)
        return cls(Path(plan.checkout), Path(planned.here), planned.inside, planned.setup, kept)

    @cached_property
    def listing(self) -> Listing:
        """What is shipped."""
        return list_files(self.folder, self.checkout)

    @property
    def digest(self) -> str:
        """Of the setup's layer; '' without one."""
        return setup_digest(self.folder, self.setup) if self.setup else ""

    def extend(self, image: modal.Image) -> modal.Image:
        """A layer of its own on our image, which Modal builds once and then has."""
        for name in setup_files(self.folder, self.setup):
            image = image.add_local_file(self.folder / name, f"{SETUP_FOLDER}/{name}", copy=True)
        lines = (f"mkdir -p {SETUP_FOLDER} && cd {SETUP_FOLDER} && {line}" for line in self.setup)
        return image.run_commands(*lines)

    def mount(self, image: modal.Image) -> modal.Image:
        """Mounts, so that an edit of a file builds nothing."""
        out = is_left_out(self.listing, self.kept)
        image = image.add_local_dir(self.folder, self.inside, copy=False, ignore=matcher(out))
        for path in self.kept:
            if self.listing.below(path):
                # The rest of the listing is out of the way here: only what lies below the path is asked for.
                seeds = is_left_out(
                    Listing(self.folder / path, dict.fromkeys(self.listing.below(path), 0))
                )
                image = image.add_local_dir(
                    self.folder / path, f"{SEEDS}/{path}", copy=False, ignore=matcher(seeds)
                )
        return image

    def __str__(self) -> str:
        return shlex.quote(str(self.folder))
