"""What jobs keep between runs in the cache volume, by kind: each is a folder of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runner.console import CliContext
from runner.errors import did_you_mean, not_found
from runner.project import volumes

# What is in them, for those that jobs and the image make; any other folder is listed by its name.
KINDS = {
    "inductor": "graphs that torch.compile has compiled",
    "triton": "GPU kernels that Triton has compiled",
    "cuda": "kernels that the driver has compiled",
    "tiktoken": "vocabularies of tokenizers",
    "huggingface": "models, datasets and tokenizers from the Hub",
    "pretrained": "published weights, for train.init_from",
}


@dataclass(frozen=True)
class Cache:
    """One kind."""

    kind: str
    files: int
    bytes: int

    @property
    def about(self) -> str:
        """What it holds, in words."""
        return KINDS.get(self.kind, "")


class CacheVolume(Protocol):
    """The cache volume of a target."""

    def caches(self) -> list[Cache]:
        """Those that there are, by name."""
        ...

    def clear(self, kind: str) -> None:
        """Delete one."""
        ...


@dataclass(frozen=True)
class CachesHere:
    """Those of a folder of this machine."""

    root: Path

    def caches(self) -> list[Cache]:
        """Those that there are, by name."""
        if not self.root.is_dir():
            return []
        return [
            _measure(path)
            for path in sorted(self.root.iterdir())
            if path.is_dir() and not path.is_symlink()
        ]

    def clear(self, kind: str) -> None:
        """Delete one."""
        shutil.rmtree(self.root / kind)


@dataclass(frozen=True)
class CachesOnModal:
    """Those of the volume in the cloud."""

    environ: Mapping[str, str]

    def caches(self) -> list[Cache]:
        """Those that there are, by name."""
        from runner.targets.modal.volume import open_files

        found: dict[str, list[int]] = {}
        try:
            entries = open_files("cache", self.environ).listing()
        except FileNotFoundError:  # no job has run there yet, and looking makes no volume
            entries = []
        for entry in entries:
            kind, slash, _ = entry.path.partition("/")
            if slash and entry.kind != "directory":
                found.setdefault(kind, []).append(entry.size)
        return [Cache(kind, len(sizes), sum(sizes)) for kind, sizes in sorted(found.items())]

    def clear(self, kind: str) -> None:
        """Delete one."""
        from runner.targets.modal.volume import open_files

        open_files("cache", self.environ).remove(kind, recursive=True)


def open_caches(cli: CliContext, checkout: Path, target: str) -> CacheVolume:
    """The cache volume of ``host``, ``local`` or ``cloud``."""
    if target == "cloud":
        return CachesOnModal(cli.environ)
    return CachesHere(volumes(checkout, cli.environ if target == "host" else {}).cache)


def choose(caches: list[Cache], kinds: tuple[str, ...]) -> list[Cache]:
    """Those of these kinds, all of them for none. Raises RunnerError, exit code 102, for one that is not there."""
    known = {cache.kind: cache for cache in caches}
    for kind in kinds:
        if kind not in known:
            guess = did_you_mean(kind, known) or f"; there are {', '.join(known) or 'none'}"
            raise not_found(f"there is no cache '{kind}'{guess}")
    return [known[kind] for kind in kinds] if kinds else caches


def _measure(folder: Path) -> Cache:
    sizes = [
        os.lstat(os.path.join(inside, name)).st_size
        for inside, _, names in os.walk(folder)
        for name in names
    ]
    return Cache(folder.name, len(sizes), sum(sizes))
