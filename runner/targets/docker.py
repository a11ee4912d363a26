"""The containers of runs, found again by their labels."""

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
from runner.planning.packaging import INSIDE, digest, list_files, setup_files
from runner.system import System

RUN_LABEL = "gpt-runner.run"

JOB_LABEL = "gpt-runner.job"

CHECKOUT_LABEL = "gpt-runner.project"


@dataclass(frozen=True)
class Container:
    """A container of a run. ``code`` is its exit status once it ended."""

    id: str
    run: str
    alive: bool
    code: int | None


def labels(run: str, job: str, checkout: Path) -> list[str]:
    """The words that put the labels on a new container."""
    pairs = ((RUN_LABEL, run), (JOB_LABEL, job), (CHECKOUT_LABEL, str(checkout)))
    return [word for name, value in pairs for word in ("--label", f"{name}={value}")]


def containers(machine: System, checkout: Path, run: str | None = None) -> list[Container]:
    """Those of this checkout, newest first; all runs' or one's. Empty where no engine answers."""
    filters = ["--filter", f"label={CHECKOUT_LABEL}={checkout}"]
    if run is not None:
        filters += ["--filter", f"label={RUN_LABEL}={run}"]
    return _list(machine, filters)


def container_named(machine: System, id: str) -> list[Container]:
    """The container with that id, which need not be one that the runner started: `docker compose up train`."""
    return _list(machine, ["--filter", f"id={id}"]) if is_container_id(id) else []


def is_container_id(host: str) -> bool:
    """Whether a host's name is what the engine gives a container: its id's first 12 digits."""
    return re.fullmatch(r"[0-9a-f]{12}", host) is not None


def _list(machine: System, filters: list[str]) -> list[Container]:
    shape = f'{{{{.ID}}}}\t{{{{.Label "{RUN_LABEL}"}}}}\t{{{{.Status}}}}'
    answer = machine.call(["docker", "ps", "--all", "--no-trunc", *filters, "--format", shape])
    if answer.code:
        return []
    rows = [line.split("\t") for line in answer.out.splitlines()]
    return [_container(*row) for row in rows if len(row) == 3]


def _container(id: str, run: str, status: str) -> Container:
    ended = re.match(r"Exited \((\d+)\)", status)
    gone = ended is not None or status.startswith(("Dead", "Removal"))
    return Container(id, run, not gone, int(ended[1]) if ended else None)


IMAGE_VARIABLE = "GPT_RUNNER_IMAGE"  # which image docker-compose.yml takes

LAYERS = "gpt-runner-setup"  # the images of setups, a tag each


def binds(folder: PlannedFolder) -> list[str]:
    """``-v`` words: the folder itself, and over it each kept folder from its volume."""
    over = [f"{keep.here}:{folder.inside}/{keep.path}:rw" for keep in folder.kept]
    return [f"{folder.here}:{folder.inside}:rw", *over]


def prepare_folder(folder: PlannedFolder, checkout: Path) -> None:
    """Make both ends of each kept folder, which the engine would make as root's, and lay there what the folder
    brings of it. Raises RunnerError where a file is in the way."""
    listing = list_files(Path(folder.here), checkout) if folder.kept else None
    for keep in folder.kept:
        inner = Path(folder.here) / keep.path
        if inner.is_file():
            raise RunnerError(
                f"{inner} is a file, and --keep is for folders; keep the one that it lies in"
            )
        if not inner.is_symlink():
            inner.mkdir(parents=True, exist_ok=True)
        Path(keep.here).mkdir(parents=True, exist_ok=True)
        if listing is not None:
            seed_volume(inner, listing.below(keep.path), Path(keep.here))
        if (
            not inner.is_symlink()
        ):  # the mount over it would hide what only .gitignore keeps back: data
            mirror_files(inner, Path(keep.here))


def layer_name(machine: System, image: str, folder: PlannedFolder) -> str:
    """The image of the folder's setup on ``image``; another one where either changes."""
    answer = machine.call(["docker", "image", "inspect", "--format", "{{.Id}}", image])
    return f"{LAYERS}:{digest(Path(folder.here), folder.setup, answer.out.strip())}"


def has_layer(machine: System, image: str, folder: PlannedFolder) -> bool:
    """Whether it is built."""
    name = layer_name(machine, image, folder)
    return machine.call(["docker", "image", "inspect", "--format", "{{.Id}}", name]).code == 0


def build_layer(machine: System, cli: CliContext, image: str, folder: PlannedFolder) -> None:
    """Build it where it is missing. Raises RunnerError where one of its lines fails."""
    if has_layer(machine, image, folder):
        return
    cli.info("extending the image, which is done once")
    with TemporaryDirectory(prefix="gpt-runner-") as context:
        for name in setup_files(Path(folder.here), folder.setup):
            (Path(context) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder.here) / name, Path(context) / name)
        lines = [f"FROM {image}", f"COPY . {INSIDE}", f"WORKDIR {INSIDE}"]
        lines += [f"RUN {line}" for line in folder.setup]
        (Path(context) / "Dockerfile").write_text("\n".join([*lines, "WORKDIR /workspace", ""]))
        program = str(machine.program("docker"))
        command = [program, "build", "--tag", layer_name(machine, image, folder), context]
        done = subprocess.run(command, env=dict(cli.environ), stdout=_talk(), check=False)
    if done.returncode:
        raise RunnerError("the setup failed; what it says above is why. Nothing was started")


def _talk() -> int | None:
    """stdout is the command's: what a build says is talk."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return None
