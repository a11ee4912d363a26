"""What a stand-in can be told when it is started, and where it keeps its state."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Settings:
    """Times are in seconds. Every folder of the state lies under `state`."""

    state: Path
    port: int = 0  # 0: any free one
    grace: float = 30.0  # between SIGINT and SIGKILL; Modal gives about 30
    heartbeat_timeout: float = 60.0  # a client that is silent for so long is gone
    strict_commits: bool = False  # a container's writes reach the volume only when it commits them
    python: str = sys.executable  # what `python` is inside a container
    blocked: tuple[str, ...] = ("click", "rich")  # not importable in the entry point's process
    hidden: tuple[Path, ...] = (REPOSITORY,)  # folders of this machine that a container can't see
    builder_version: str = "2026.10"
    rates: Mapping[str, str] = field(default_factory=dict)  # dollars an hour, by Modal's names
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    container_env: Mapping[str, str] = field(default_factory=dict)

    @property
    def heartbeat_interval(self) -> float:
        """How often a client must be heard: as often as the real one, or four times in the time-out."""
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
        """On the same file system as the rest, so that a rename from here is atomic."""
        return self.state / "scratch"

    def create_folders(self) -> None:
        for folder in (self.volumes, self.containers, self.content, self.blobs, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)
