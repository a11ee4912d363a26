"""The targets of the suite, each in a separate checkout with the recipe ``tiny``.

``GPT_RUNNER_TEST_BOX=lab`` tests the target ``remote`` on that box instead of this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.container.conftest import engine, image  # noqa: F401
from tests.runner.targets.modal.conftest import ROOT, make_checkout, open_cloud

HOOK = """\
import os
os.environ.setdefault("TRAIN_STEP_HOOK", "step_hook")
os.environ.setdefault("OMP_NUM_THREADS", "1")
"""
TARGETS = (
    "host",
    "cloud",
    pytest.param("local", marks=pytest.mark.container),
    pytest.param("remote", marks=pytest.mark.container),
)
IMAGE = "gpt-runner"
BOX_VARIABLE = "GPT_RUNNER_TEST_BOX"
WAIT_S = 120


@dataclass
class TargetFixture:
    """`runner` on a target: ``words`` select it on the command line, ``name`` in `--target`."""

    name: str
    words: tuple[str, ...]
    checkout: Path
    environ: dict[str, str]
    has_remote_volumes: bool = False

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start `runner WORDS`."""
        command = [sys.executable, "-c", "from runner.cli import main; main()", *words]
        return subprocess.Popen(
            command,
            cwd=self.checkout,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, status: int = 0) -> tuple[str, str]:
        """Run `runner WORDS` to its end, expecting ``status``; return stdout and stderr."""
        process = self.start(*words)
        out, err = process.communicate(timeout=300)
        assert process.returncode == status, f"exit {process.returncode}\n{out}\n{err}"
        return out, err

    def launch(self, *words: str, status: int = 0) -> tuple[str, str]:
        """Run a job on the target."""
        return self.run(*self.words, *words, "-y", status=status)

    def state(self, run: str) -> dict[str, Any]:
        """Return the status of `runner status`."""
        return dict(json.loads(self.run("status", run, "--json")[0]))

    def wait_for_checkpoint(self, run: str, step: int) -> None:
        """Follow the log until it has the checkpoint of ``step``."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:  # again if the run does not exist yet
            with self.start("logs", run, "--follow") as follower:
                limit = threading.Timer(end - time.monotonic(), follower.kill)
                limit.start()
                assert follower.stdout is not None
                has_checkpoint = any(f"checkpoint of step {step} " in at for at in follower.stdout)
                limit.cancel()
                follower.kill()
            if has_checkpoint:
                return
        raise AssertionError(self.start("logs", run).communicate())

    def folder(self, run: str) -> Path:
        """Return the run's folder on this machine; pull it from a remote target."""
        if self.has_remote_volumes:
            self.run("pull", "checkpoints", run, "--target", self.name, "-y")
        return self.checkout / "volumes" / "checkpoints" / run

    def weights(self, run: str) -> bytes:
        """Return the newest weights of the run."""
        folder = self.folder(run)
        step = (folder / "latest").read_text().strip()
        return (folder / step / "model.safetensors").read_bytes()


@contextmanager
def _host(checkout: Path, folder: Path) -> Iterator[TargetFixture]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    environ |= {"TRAIN_STEP_HOOK": "step_hook", "OMP_NUM_THREADS": "1"}
    yield TargetFixture("host", ("host",), checkout, environ)


@contextmanager
def _cloud(checkout: Path, folder: Path) -> Iterator[TargetFixture]:
    with open_cloud(checkout, folder) as cloud:
        yield TargetFixture("cloud", ("cloud",), checkout, cloud.environ, True)


@contextmanager
def _local(checkout: Path, folder: Path) -> Iterator[TargetFixture]:
    project = f"gpt-runner-test-{uuid.uuid4().hex[:8]}"
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "COMPOSE_PROJECT_NAME": project}
    yield TargetFixture("local", ("local",), checkout, environ)
    remove = ["docker", "compose", "down", "--volumes", "--timeout", "1"]
    subprocess.run(remove, cwd=checkout, env=environ, capture_output=True)


@contextmanager
def _remote(checkout: Path, folder: Path) -> Iterator[TargetFixture]:
    prefix = f"gpt-runner-test-{uuid.uuid4().hex[:8]}-"
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "GPT_RUNNER_VOLUMES": prefix}
    box = os.environ.get(BOX_VARIABLE)
    with nullcontext(environ) if box else _sshd(folder, environ) as environ:
        name = box or "box"
        try:
            yield TargetFixture(f"remote:{name}", ("remote", name), checkout, environ, True)
        finally:
            on_box = f"{shutil.which('ssh', path=environ['PATH'])} {name} docker"
            mine = f"--filter label=gpt-runner.project={prefix}"
            _remove(f"{on_box} ps -aq {mine}", f"{on_box} rm -f")
            _remove(f"{on_box} volume ls -q --filter name={prefix}", f"{on_box} volume rm")


@contextmanager
def _sshd(folder: Path, environ: dict[str, str]) -> Iterator[dict[str, str]]:
    """Start an sshd with new keys, which accepts ``box`` as a name of this machine."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None or shutil.which("ssh") is None:
        pytest.skip("sshd is not installed")
    for name in ("host", "user"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(keygen, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}"
    (folder / "known_hosts").write_text(own)
    engine_address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/user.pub\nPidFile {folder}/pid\nUsePAM no\n"
        f"SetEnv DOCKER_HOST={engine_address} PATH={os.environ['PATH']}\n"
    )
    (folder / "ssh_config").write_text(
        f"Host box\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {folder}/user\n"
        f"  UserKnownHostsFile {folder}/known_hosts\n"
    )
    (folder / "bin").mkdir()
    wrapper = folder / "bin" / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([sshd, "-D", "-f", str(folder / "sshd_config")])
    path = f"{folder}/bin:{os.environ['PATH']}"
    try:
        yield {**environ, "PATH": path, "GPT_RUNNER_IMAGE": IMAGE}
    finally:
        server.terminate()
        server.wait()


def _remove(listing: str, removal: str) -> None:
    found = subprocess.run(listing.split(), capture_output=True, text=True).stdout
    if found.split():
        subprocess.run([*removal.split(), *found.split()], capture_output=True)


OPEN_TARGET = {"host": _host, "cloud": _cloud, "local": _local, "remote": _remote}


@pytest.fixture(scope="module", params=TARGETS)
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TargetFixture]:
    if request.param == "local" or (request.param == "remote" and BOX_VARIABLE not in os.environ):
        request.getfixturevalue("image")
    folder = tmp_path_factory.mktemp(request.param)
    checkout = make_checkout(folder / "checkout")
    shutil.copytree(ROOT / "container", checkout / "container")
    (checkout / "sitecustomize.py").write_text(HOOK)  # for jobs in containers
    opened: Callable[..., Any] = OPEN_TARGET[request.param]
    with opened(checkout, folder) as made:
        yield made
