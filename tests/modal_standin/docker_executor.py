"""Run containers with Docker, in an image that a test names or builds from the requests.

    def image(image_id: str) -> str:
        return build_image(modal, image_id)

    with ModalStandin(state, executor=DockerExecutor(image)) as modal:
        ...

The client and its dependencies are mounted as Modal mounts them: at /pkg and /__modal/deps, without
click and rich. They are those of the tests' interpreter, so the image's Python must be of the same
minor version.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from .api import Api
from .executor import OWN_FOLDERS, Container, Running

CLIENT_PACKAGES = ("modal", "modal_proto", "modal_version", "synchronicity")
DEPENDENCIES_PATH = "/__modal/deps"


def docker_answers() -> bool:
    """Return whether a Docker engine answers."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, timeout=30).returncode == 0


def image_tag(image_id: str) -> str:
    return f"modal-standin:{image_id}"


def build_image(modal: Api, image_id: str, timeout: float = 1800) -> str:
    """Build the recorded image and return its tag. Raises RuntimeError if it fails."""
    tag = image_tag(image_id)
    with tempfile.TemporaryDirectory(prefix="modal-image-") as folder:
        dockerfile = modal.write_dockerfile(image_id, Path(folder))
        command = ["docker", "build", "--quiet", "--tag", tag, "--file", str(dockerfile)]
        command.append(str(dockerfile.parent))
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        raise RuntimeError(f"docker build failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return tag


class DockerExecutor:
    """Run containers with Docker. `image` is a tag, or a function from image ids to tags."""

    def __init__(self, image: str | Callable[[str], str], options: tuple[str, ...] = ()) -> None:
        self._image = image
        self._options = options

    async def start(self, container: Container) -> Running:
        image = self._image
        if not isinstance(image, str):
            image = await asyncio.to_thread(image, container.image_id)
        dependencies = container.folder.parent / "dependencies"
        await asyncio.to_thread(collect_dependencies, dependencies)
        name = f"standin-{container.task_id}"
        env = {
            key: value
            for key, value in container.env.items()
            if key not in ("PATH", "STANDIN_BLOCKED")
        }
        env_file = container.folder / "env"  # not on the command line, which every process can read
        env_file.write_text("".join(f"{key}={value}\n" for key, value in env.items()))
        env_file.chmod(0o600)
        command = [
            "docker",
            "run",
            "--rm",
            "--name",
            name,
            "--network",
            "host",
            "--env-file",
            str(env_file),
        ]
        command += ["--workdir", container.workdir, *self._options, "--entrypoint", "python"]
        for source, target in _mounts(container, dependencies):
            command += ["--volume", f"{source}:{target}"]
        process = await asyncio.create_subprocess_exec(
            *command,
            image,
            "-u",
            *container.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        return DockerRunning(name, process)


class DockerRunning:
    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._name = name
        self._process = process
        self.stdout = process.stdout
        self.stderr = process.stderr

    async def wait(self) -> int:
        code = await self._process.wait()
        return 128 - code if code > 128 else code  # docker reports 137 for SIGKILL

    def interrupt(self) -> None:
        self._signal("INT")

    async def kill(self) -> None:
        await asyncio.to_thread(self._signal, "KILL")

    def _signal(self, name: str) -> None:
        subprocess.run(["docker", "kill", "--signal", name, self._name], capture_output=True)


def collect_dependencies(target: Path) -> None:
    """Copy the client's dependencies that Modal mounts; the client has the list."""
    if target.exists():
        return
    building = target.with_suffix(".partial")
    shutil.rmtree(building, ignore_errors=True)
    for requirement in _requirements():
        try:
            files = metadata.files(requirement) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if ".." not in file.parts and Path(file.locate()).is_file():
                copy = building / file
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.locate(), copy)
    building.rename(target)


def _requirements() -> list[str]:
    folder = _package_folder("modal") / "builder"
    newest = max(path for path in folder.glob("20*.txt"))
    lines = [line.split("#")[0].strip() for line in newest.read_text().splitlines()]
    return [re.split(r"[=<>; \[]", line)[0] for line in lines if line]


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _mounts(container: Container, dependencies: Path) -> list[tuple[str, str]]:
    found = [(str(container.folder / "args"), f"{container.folder / 'args'}:ro")]
    for entry in sorted(container.tree.iterdir()):
        if f"/{entry.name}" in OWN_FOLDERS:
            found.append((str(entry), f"/{entry.name}"))
        else:  # the image may have this folder too
            found += [
                (str(p), f"/{p.relative_to(container.tree)}")
                for p in entry.rglob("*")
                if p.is_file()
            ]
    found += [(str(_package_folder(name)), f"/pkg/{name}:ro") for name in CLIENT_PACKAGES]
    found.append((str(dependencies), f"{DEPENDENCIES_PATH}:ro"))
    for view in container.views:
        found.append((str(view.folder), view.target + (":ro" if view.read_only else "")))
    return found
