"""The options of a stand-in, and the folders of its state."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Settings:
    """Options. Times are in seconds; all files are below `state`."""

    state: Path
    port: int = 0  # 0: any free one
    grace: float = 30.0  # between SIGINT and SIGKILL; Modal gives about 30
    heartbeat_timeout: float = 60.0  # a client that is silent for longer is gone
    delay: float = 0.0  # before each answer to a client, as by a distant server
    strict_commits: bool = False  # only a commit writes to the volume
    python: str = sys.executable  # what `python` is inside a container
    blocked: tuple[str, ...] = ("click", "rich")  # not importable in the entry point's process
    hidden: tuple[Path, ...] = (REPOSITORY,)  # folders of this machine that containers cannot see
    builder_version: str = "2026.10"
    rates: Mapping[str, str] = field(default_factory=dict)  # dollars an hour, by Modal's names
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    container_env: Mapping[str, str] = field(default_factory=dict)
    registry: Mapping[str, str] = field(default_factory=dict)  # Dockerfiles of images by their name

    @property
    def heartbeat_interval(self) -> float:
        """Return the interval of heartbeats: the real one, or a quarter of the timeout."""
        return min(15.0, self.heartbeat_timeout / 4)

    @property
    def volumes(self) -> Path:
        return self.state / "volumes"

    @property
    def containers(self) -> Path:
        return self.state / "containers"

    @property
    def content(self) -> Path:
        """Files and blocks by their SHA-256."""
        return self.state / "content"

    @property
    def blobs(self) -> Path:
        return self.state / "blobs"

    @property
    def scratch(self) -> Path:
        """Return a folder on the same file system as the rest, so that renames are atomic."""
        return self.state / "scratch"

    def create_folders(self) -> None:
        for folder in (self.volumes, self.containers, self.content, self.blobs, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)
