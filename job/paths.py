"""Every path and environment variable that a job reads or writes, on every target.

In a container the volumes are mounted under /vol and the Dockerfile sets the variables; on the host
they are folders of the checkout.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent

CONFIGS = CHECKOUT / "configs"

VOLUMES = ("data", "checkpoints", "cache")

WORKSPACE = "/workspace"  # the code in a container

# Caches of other programs, each in a folder of the cache volume unless the user set the variable.
CACHES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "TIKTOKEN_CACHE_DIR": "tiktoken",
}


class VolumePaths(NamedTuple):
    """The folders of the three volumes."""

    data: Path
    checkpoints: Path
    cache: Path

    @classmethod
    def under(cls, root: Path) -> VolumePaths:
        """Return the volumes as folders of ``root``."""
        return cls(*(root / volume for volume in VOLUMES))

    @classmethod
    def current(
        cls, environ: Mapping[str, str] = os.environ, root: Path = CHECKOUT / "volumes"
    ) -> VolumePaths:
        """Return this process's volumes: from the variables, else the folders of ``root``."""
        default = cls.under(root)
        return cls(
            data=Path(environ.get("DATA_PATH") or default.data),
            checkpoints=Path(environ.get("CHECKPOINTS_PATH") or default.checkpoints),
            cache=Path(environ.get("CACHE_PATH") or default.cache),
        )

    def environment(self) -> dict[str, str]:
        """Return the variables that point jobs, torch, Triton, CUDA and tiktoken at them."""
        return {
            "DATA_PATH": str(self.data),
            "CHECKPOINTS_PATH": str(self.checkpoints),
            "CACHE_PATH": str(self.cache),
            **{name: str(self.cache / folder) for name, folder in CACHES.items()},
        }

    def set_defaults(self) -> None:
        """Set the variables that are not set; torch reads them late."""
        for name, value in self.environment().items():
            os.environ.setdefault(name, value)

    def run(self, name: str) -> Path:
        """Return the folder of the run ``name``."""
        return self.checkpoints / name

    def dataset(self, name: str) -> Path:
        """Return the folder of the dataset ``name``."""
        return self.data / name
