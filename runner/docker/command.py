"""What a command in the container needs besides: its folder and kept folders as mounts, its setup as an image."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from job.kept import seed, share
from runner.errors import RunnerError
from runner.machine import Machine
from runner.plans.planned import PlannedFolder
from runner.plans.setup import INSIDE, digest, setup_files
from runner.plans.shipped import list_files
from runner.terminal import Environment

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
            raise RunnerError(f"{inner} is a file, and --keep is for folders; keep the one that it lies in")
        if not inner.is_symlink():
            inner.mkdir(parents=True, exist_ok=True)
        Path(keep.here).mkdir(parents=True, exist_ok=True)
        if listing is not None:
            seed(inner, listing.below(keep.path), Path(keep.here))
        if not inner.is_symlink():  # the mount over it would hide what only .gitignore keeps back: data
            share(inner, Path(keep.here))


def layer_name(machine: Machine, image: str, folder: PlannedFolder) -> str:
    """The image of the folder's setup on ``image``; another one where either changes."""
    answer = machine.call(["docker", "image", "inspect", "--format", "{{.Id}}", image])
    return f"{LAYERS}:{digest(Path(folder.here), folder.setup, answer.out.strip())}"


def has_layer(machine: Machine, image: str, folder: PlannedFolder) -> bool:
    """Whether it is built."""
    name = layer_name(machine, image, folder)
    return machine.call(["docker", "image", "inspect", "--format", "{{.Id}}", name]).code == 0


def build_layer(machine: Machine, env: Environment, image: str, folder: PlannedFolder) -> None:
    """Build it where it is missing. Raises RunnerError where one of its lines fails."""
    if has_layer(machine, image, folder):
        return
    env.say("extending the image, which is done once")
    with TemporaryDirectory(prefix="gpt-runner-") as context:
        for name in setup_files(Path(folder.here), folder.setup):
            (Path(context) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder.here) / name, Path(context) / name)
        lines = [f"FROM {image}", f"COPY . {INSIDE}", f"WORKDIR {INSIDE}"]
        lines += [f"RUN {line}" for line in folder.setup]
        (Path(context) / "Dockerfile").write_text("\n".join([*lines, "WORKDIR /workspace", ""]))
        program = str(machine.program("docker"))
        command = [program, "build", "--tag", layer_name(machine, image, folder), context]
        done = subprocess.run(command, env=dict(env.environ), stdout=_talk(), check=False)
    if done.returncode:
        raise RunnerError("the setup failed; what it says above is why. Nothing was started")


def _talk() -> int | None:
    """stdout is the command's: what a build says is talk."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return None
