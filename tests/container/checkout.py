"""A fresh clone of this checkout, owned by a user of the test's choice, and compose inside it."""

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

# What would change where compose looks or what a job is told.
SETTINGS = (
    *("COMPOSE_FILE", "COMPOSE_PROFILES", "HOST_UID", "HOST_GID", "RUN_LAUNCH", "TENSORBOARD_PORT"),
    *("DATA_PATH", "CHECKPOINTS_PATH", "CACHE_PATH"),
)


@dataclass
class Checkout:
    """A clone with no .env, its compose project and the user who types the commands."""

    folder: Path
    uid: int
    environ: dict[str, str] = field(default_factory=dict)

    @classmethod
    def clone(cls, uid: int) -> Checkout:
        """Copy what git would: the files as they now are, without what is ignored. Needs root if ``uid`` differs."""
        # Not under pytest's folder: that one is closed to other users.
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
            **{name: value for name, value in os.environ.items() if name not in SETTINGS},
            "HOME": str(parent / "home"),
            "DOCKER_CONFIG": str(parent / "home" / ".docker"),
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
        """Run a command in the clone as its owner. With ``check`` a failure shows what it printed."""
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
            raise AssertionError(
                f"{' '.join(arguments)} ended with {result.returncode}\n{result.stdout}\n{result.stderr}"
            )
        return result

    def compose(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """``docker compose ...``"""
        return self.command("docker", "compose", *arguments, **options)

    def run(
        self, service: str, *arguments: str, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """``docker compose run`` of a service, off a terminal."""
        return self.compose("run", "--rm", "-T", service, *arguments, **options)

    def bash(self, script: str, **options: Any) -> str:
        """What a script prints in the service `shell`."""
        return str(self.run("shell", "bash", "-euc", script, **options).stdout)

    def container(self, service: str) -> str:
        """The id of the service's container, running or not."""
        return (
            str(self.compose("ps", "--all", "--quiet", service, check=False).stdout).strip()
            or str(self.compose("ps", "--quiet", service).stdout).strip()
        )

    def state(self, service: str) -> dict[str, Any]:
        """The engine's account of the service's container: Status, ExitCode, Health."""
        listed = self.command(
            "docker", "inspect", "--format", "{{json .State}}", self.container(service)
        )
        state: dict[str, Any] = json.loads(listed.stdout)
        return state

    def override(self, service: str, settings: dict[str, Any]) -> None:
        """Change a service for this clone, as a user would: in docker-compose.override.yml."""
        tree = {"services": {service: settings}}
        (self.folder / "docker-compose.override.yml").write_text(json.dumps(tree))

    def owners(self) -> dict[str, int]:
        """Every path of the volumes → the uid that it belongs to."""
        volumes = self.folder / "volumes"
        return {str(p.relative_to(volumes)): p.stat().st_uid for p in volumes.glob("*/**/*")}

    def remove(self) -> None:
        self.compose("down", "--volumes", "--timeout", "1", check=False)
        shutil.rmtree(self.folder.parent, ignore_errors=True)


def engine_socket() -> Path:
    """Where the engine listens on this machine."""
    return Path(
        os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    )


def _copy_compose_plugin(into: Path) -> None:
    """Compose may be installed for the testing user alone; the clone's user finds a copy."""
    config = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    plugin = config / "cli-plugins" / "docker-compose"
    if plugin.exists():
        into.mkdir(parents=True)
        shutil.copy(plugin, into / "docker-compose")
