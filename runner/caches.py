"""List and clear the caches of jobs: folders of the cache volume, one per kind of file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runner.console import CliContext
from runner.errors import did_you_mean, not_found
from runner.target import open_target
from runner.targets.modal.volume import open_files

# The folders that jobs and the image create. Others are listed too, by their name alone.
DESCRIPTIONS = {
    "inductor": "graphs compiled by torch.compile",
    "triton": "GPU kernels compiled by Triton",
    "cuda": "GPU kernels compiled by the driver",
    "tiktoken": "tokenizer vocabularies",
    "huggingface": "models, datasets and tokenizers from the Hub",
    "pretrained": "published weights, for train.init_from",
}


@dataclass(frozen=True)
class Cache:
    """The files of one kind."""

    kind: str
    files: int
    bytes: int

    @property
    def description(self) -> str:
        """Return what it contains; '' for an unknown kind."""
        return DESCRIPTIONS.get(self.kind, "")


class CacheVolume(Protocol):
    """The cache volume of a target."""

    def caches(self) -> list[Cache]:
        """Return the caches by name. Hidden folders are not caches: .sync has the journal."""
        ...

    def clear(self, kind: str) -> None:
        """Delete one cache."""
        ...


@dataclass(frozen=True)
class LocalCaches:
    """The cache volume on this machine."""

    root: Path

    def caches(self) -> list[Cache]:
        """Return the caches by name."""
        if not self.root.is_dir():
            return []
        return [
            _measure(path)
            for path in sorted(self.root.iterdir())
            if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
        ]

    def clear(self, kind: str) -> None:
        """Delete one cache."""
        shutil.rmtree(self.root / kind)


@dataclass(frozen=True)
class ModalCaches:
    """The cache volume on Modal."""

    environ: Mapping[str, str]

    def caches(self) -> list[Cache]:
        """Return the caches by name."""
        sizes: dict[str, list[int]] = {}
        try:
            entries = open_files("cache", self.environ).listing()
        except FileNotFoundError:  # no job has created the volume yet
            entries = []
        for entry in entries:
            kind, slash, _ = entry.path.partition("/")
            if slash and entry.kind != "directory" and not kind.startswith("."):
                sizes.setdefault(kind, []).append(entry.size)
        return [Cache(kind, len(found), sum(found)) for kind, found in sorted(sizes.items())]

    def clear(self, kind: str) -> None:
        """Delete one cache."""
        open_files("cache", self.environ).remove(kind, recursive=True)


def open_caches(cli: CliContext, checkout: Path, target: str) -> CacheVolume:
    """Return the cache volume of ``target``."""
    opened = open_target(target, cli, checkout)
    return (
        ModalCaches(cli.environ) if opened.has_remote_volumes else LocalCaches(opened.volumes.cache)
    )


def select_caches(caches: list[Cache], kinds: tuple[str, ...]) -> list[Cache]:
    """Return the caches of these kinds, or all for none.

    Raises RunnerError, exit status 102, for a kind that does not exist.
    """
    by_kind = {cache.kind: cache for cache in caches}
    for kind in kinds:
        if kind not in by_kind:
            existing = f"; existing caches: {', '.join(by_kind) or 'none'}"
            raise not_found(f"unknown cache '{kind}'{did_you_mean(kind, by_kind) or existing}")
    return [by_kind[kind] for kind in kinds] if kinds else caches


def active_runs(cli: CliContext, checkout: Path, target: str) -> list[str]:
    """Return the active runs of ``target``, which may be using its caches."""
    return [info.run for info in open_target(target, cli, checkout).runs() if info.alive]


def _measure(folder: Path) -> Cache:
    sizes = [
        os.lstat(os.path.join(parent, name)).st_size
        for parent, _, names in os.walk(folder)
        for name in names
    ]
    return Cache(folder.name, len(sizes), sum(sizes))
