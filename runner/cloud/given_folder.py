"""The folder of a command on Modal: its setup as a layer of the image, its files as mounts beside the code."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from runner.cloud.mount import matcher
from runner.plans.command_plan import SEEDS
from runner.plans.planned import Plan
from runner.plans.setup import INSIDE, digest, setup_files
from runner.plans.shipped import Listing, keeps_out, list_files

if TYPE_CHECKING:
    import modal


@dataclass(frozen=True)
class GivenFolder:
    """``folder`` is to be seen at ``inside``, its ``kept`` paths below SEEDS instead."""

    checkout: Path
    folder: Path
    inside: str
    setup: tuple[str, ...]
    kept: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan) -> GivenFolder | None:
        """The folder of the plan; None for a job that has none."""
        if plan.folder is None:
            return None
        planned = plan.folder
        kept = tuple(keep.path for keep in planned.kept)
        return cls(Path(plan.checkout), Path(planned.here), planned.inside, planned.setup, kept)

    @cached_property
    def listing(self) -> Listing:
        """What is shipped."""
        return list_files(self.folder, self.checkout)

    @property
    def digest(self) -> str:
        """Of the setup's layer; '' without one."""
        return digest(self.folder, self.setup) if self.setup else ""

    def extend(self, image: modal.Image) -> modal.Image:
        """A layer of its own on our image, which Modal builds once and then has."""
        for name in setup_files(self.folder, self.setup):
            image = image.add_local_file(self.folder / name, f"{INSIDE}/{name}", copy=True)
        lines = (f"mkdir -p {INSIDE} && cd {INSIDE} && {line}" for line in self.setup)
        return image.run_commands(*lines)

    def mount(self, image: modal.Image) -> modal.Image:
        """Mounts, so that an edit of a file builds nothing."""
        out = keeps_out(self.listing, self.kept)
        image = image.add_local_dir(self.folder, self.inside, copy=False, ignore=matcher(out))
        for path in self.kept:
            if self.listing.below(path):
                # The rest of the listing is out of the way here: only what lies below the path is asked for.
                seeds = keeps_out(Listing(self.folder / path, dict.fromkeys(self.listing.below(path), 0)))
                image = image.add_local_dir(
                    self.folder / path, f"{SEEDS}/{path}", copy=False, ignore=matcher(seeds)
                )
        return image

    def __str__(self) -> str:
        return shlex.quote(str(self.folder))
