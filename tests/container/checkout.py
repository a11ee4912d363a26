"""Fresh clones of this checkout, owned by any user, and Docker Compose commands in them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent

# Variables of the tests' environment that Compose or a job would read.
INHERITED_SETTINGS = (
    *("COMPOSE_FILE", "COMPOSE_PROFILES", "HOST_UID", "HOST_GID", "RUN_LAUNCH", "TENSORBOARD_PORT"),
    *("DATA_PATH", "CHECKPOINTS_PATH", "CACHE_PATH"),
)


@dataclass
class Checkout:
    """A clone without .env, its Compose project and the user who runs the commands."""

    folder: Path
    uid: int
    environ: dict[str, str] = field(default_factory=dict)

    @classmethod
    def clone(cls, uid: int) -> Checkout:
        """Copy the working tree without ignored files, for the user ``uid``.

        Needs root if that is a different user.
        """
        # Not below pytest's folder, which other users cannot open.
        parent = Path(tempfile.mkdtemp(prefix="gpt-runner-"))
        parent.chmod(0o755)
        folder = parent / "checkout"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
        ).stdout.decode()
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        (parent / "home").mkdir()
        _copy_compose_plugin(parent / "home" / ".docker" / "cli-plugins")
        checkout = cls(folder, uid)
        checkout.environ = {
            **{name: value for name, value in os.environ.items() if name not in INHERITED_SETTINGS},
            "HOME": str(parent / "home"),
            "DOCKER_CONFIG": str(parent / "home" / ".docker"),
            "PWD": str(folder),
            "COMPOSE_PROJECT_NAME": f"gpt-runner-test-{uuid.uuid4().hex[:8]}",
        }
        if uid != os.geteuid():
            for path in [parent, *parent.rglob("*")]:
                os.chown(path, uid, uid)
        return checkout

    def command(
        self,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        check: bool = True,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone as its owner. With ``check``, a failure shows its output."""
        if self.uid != os.geteuid():
            options |= {
                "user": self.uid,
                "group": self.uid,
                "extra_groups": [engine_socket().stat().st_gid],
            }
        result = subprocess.run(
            arguments,
            cwd=self.folder,
            env={**self.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            **options,
        )
        if check and result.returncode:
            command = " ".join(arguments)
            raise AssertionError(
                f"{command} exited with {result.returncode}\n{result.stdout}\n{result.stderr}"
            )
        return result

    def compose(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run ``docker compose ...``."""
        return self.command("docker", "compose", *arguments, **options)

    def run(
        self, service: str, *arguments: str, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run ``docker compose run`` of a service, without a terminal."""
        return self.compose("run", "--rm", "-T", service, *arguments, **options)

    def bash(self, script: str, **options: Any) -> str:
        """Return the output of a script in the service `shell`."""
        return str(self.run("shell", "bash", "-euc", script, **options).stdout)

    def container(self, service: str) -> str:
        """Return the id of the service's container, running or not."""
        return (
            str(self.compose("ps", "--all", "--quiet", service, check=False).stdout).strip()
            or str(self.compose("ps", "--quiet", service).stdout).strip()
        )

    def state(self, service: str) -> dict[str, Any]:
        """Return the state of the service's container: Status, ExitCode, Health."""
        listed = self.command(
            "docker", "inspect", "--format", "{{json .State}}", self.container(service)
        )
        state: dict[str, Any] = json.loads(listed.stdout)
        return state

    def override(self, service: str, settings: dict[str, Any]) -> None:
        """Change a service of this clone with docker-compose.override.yml."""
        tree = {"services": {service: settings}}
        (self.folder / "docker-compose.override.yml").write_text(json.dumps(tree))

    def owners(self) -> dict[str, int]:
        """Return the uid of every path in the volumes."""
        volumes = self.folder / "volumes"
        return {str(p.relative_to(volumes)): p.stat().st_uid for p in volumes.glob("*/**/*")}

    def remove(self) -> None:
        profiles = {"COMPOSE_PROFILES": "serve,tensorboard"}  # Compose 2 leaves inactive ones
        self.compose("down", "--volumes", "--timeout", "1", check=False, environ=profiles)
        shutil.rmtree(self.folder.parent, ignore_errors=True)


def engine_socket() -> Path:
    """Return the socket of this machine's engine."""
    return Path(
        os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    )


def _copy_compose_plugin(into: Path) -> None:
    """Copy Compose for the clone's user, in case only the testing user has it."""
    config = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    plugin = config / "cli-plugins" / "docker-compose"
    if plugin.exists():
        into.mkdir(parents=True)
        shutil.copy(plugin, into / "docker-compose")
