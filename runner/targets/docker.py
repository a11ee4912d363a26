"""Containers of runs, found by their labels; mounts and images of a command's folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from job.user_command.persisted_paths import mirror_files, seed_volume
from runner.console import CliContext
from runner.errors import RunnerError
from runner.plan import PlannedFolder
from runner.planning.packaging import SETUP_FOLDER, list_files, setup_digest, setup_files
from runner.system import System, is_container_id

RUN_LABEL = "gpt-runner.run"
JOB_LABEL = "gpt-runner.job"
CHECKOUT_LABEL = "gpt-runner.project"

IMAGE_VARIABLE = "GPT_RUNNER_IMAGE"  # docker-compose.yml reads the name of the image from it
SETUP_REPOSITORY = "gpt-runner-setup"  # images extended by --setup, one tag each


@dataclass(frozen=True)
class Container:
    """A container of a run. ``code`` is its exit status once it has ended."""

    id: str
    run: str
    alive: bool
    code: int | None


def label_options(run: str, job: str, checkout: Path) -> list[str]:
    """Return the options that label a new container."""
    pairs = ((RUN_LABEL, run), (JOB_LABEL, job), (CHECKOUT_LABEL, str(checkout)))
    return [word for name, value in pairs for word in ("--label", f"{name}={value}")]


def containers(system: System, checkout: Path, run: str | None = None) -> list[Container]:
    """Return the containers of this checkout, or of one run, newest first; [] without an engine."""
    filters = ["--filter", f"label={CHECKOUT_LABEL}={checkout}"]
    if run is not None:
        filters += ["--filter", f"label={RUN_LABEL}={run}"]
    return _list(system, filters)


def container_named(system: System, id: str) -> list[Container]:
    """Return the container with that id, also one that `docker compose up` started."""
    return _list(system, ["--filter", f"id={id}"]) if is_container_id(id) else []


def _list(system: System, filters: list[str]) -> list[Container]:
    shape = f'{{{{.ID}}}}\t{{{{.Label "{RUN_LABEL}"}}}}\t{{{{.Status}}}}'
    answer = system.call(["docker", "ps", "--all", "--no-trunc", *filters, "--format", shape])
    if answer.code:
        return []
    rows = [line.split("\t") for line in answer.out.splitlines()]
    return [_parse_container(*row) for row in rows if len(row) == 3]


def _parse_container(id: str, run: str, status: str) -> Container:
    exited = re.match(r"Exited \((\d+)\)", status)
    is_gone = exited is not None or status.startswith(("Dead", "Removal"))
    return Container(id, run, not is_gone, int(exited[1]) if exited else None)


def bind_mounts(folder: PlannedFolder) -> list[str]:
    """Return values of ``-v``: the folder, and over it each persisted path from its volume."""
    over = [f"{keep.here}:{folder.inside}/{keep.path}:rw" for keep in folder.persisted]
    return [f"{folder.here}:{folder.inside}:rw", *over]


def prepare_mounts(folder: PlannedFolder, checkout: Path) -> None:
    """Make both ends of each persisted path and fill the volume with the folder's own files.

    The engine would make missing folders as root. Raises RunnerError if a path is a file.
    """
    listing = list_files(Path(folder.here), checkout) if folder.persisted else None
    for keep in folder.persisted:
        inner = Path(folder.here) / keep.path
        if inner.is_file():
            raise RunnerError(
                f"{inner} is a file, and --persist needs a folder; name the folder that contains it"
            )
        if not inner.is_symlink():
            inner.mkdir(parents=True, exist_ok=True)
        Path(keep.here).mkdir(parents=True, exist_ok=True)
        if listing is not None:
            seed_volume(inner, listing.below(keep.path), Path(keep.here))
        if not inner.is_symlink():  # the mount would hide the files that .gitignore names
            mirror_files(inner, Path(keep.here))


def setup_image(system: System, image: str, folder: PlannedFolder) -> str:
    """Return the name of ``image`` extended by the folder's setup.

    It changes when either changes.
    """
    answer = system.call(["docker", "image", "inspect", "--format", "{{.Id}}", image])
    return f"{SETUP_REPOSITORY}:{setup_digest(Path(folder.here), folder.setup, answer.out.strip())}"


def has_setup_image(system: System, image: str, folder: PlannedFolder) -> bool:
    """Return True if that image is built."""
    name = setup_image(system, image, folder)
    return system.call(["docker", "image", "inspect", "--format", "{{.Id}}", name]).code == 0


def build_setup_image(system: System, cli: CliContext, image: str, folder: PlannedFolder) -> None:
    """Build the image if it is missing. Raises RunnerError if a setup line fails."""
    if has_setup_image(system, image, folder):
        return
    cli.info("extending the image with the setup, once")
    with TemporaryDirectory(prefix="gpt-runner-") as context:
        for name in setup_files(Path(folder.here), folder.setup):
            (Path(context) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder.here) / name, Path(context) / name)
        lines = [f"FROM {image}", f"COPY . {SETUP_FOLDER}", f"WORKDIR {SETUP_FOLDER}"]
        lines += [f"RUN {line}" for line in folder.setup]
        text = "\n".join([*lines, "WORKDIR /workspace", ""])
        (Path(context) / "Dockerfile").write_text(text, encoding="utf-8")
        docker = str(system.program("docker"))
        command = [docker, "build", "--tag", setup_image(system, image, folder), context]
        done = subprocess.run(
            command, env=dict(cli.environ), stdout=stderr_descriptor(), check=False
        )
    if done.returncode:
        raise RunnerError(
            "the setup failed, and the run did not start; fix the error above and try again"
        )


def stderr_descriptor() -> int | None:
    """Return the descriptor of stderr, for the output of builds: stdout belongs to the job."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return None
