"""The jobs: what ``python -m model.<job>`` takes. Adding one is a line in this table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """What a job reads and needs."""

    name: str
    does: str
    reads_recipe: bool = False  # else it reads a run that has a checkpoint
    takes_device: bool = True
    in_processes: bool = False  # may be started as N processes under torchrun
    has_run: bool = False  # makes or continues a run's folder
    needs: tuple[str, ...] = ("torch",)  # modules that the host's Python must have

    @property
    def module(self) -> str:
        """What Python runs."""
        return f"model.{self.name}"


JOBS = {
    job.name: job
    for job in (
        Job("prepare", "writes the dataset's shards", True, takes_device=False, needs=("numpy",)),
        Job("train", "trains", True, in_processes=True, has_run=True),
        Job("sample", "writes text from the newest checkpoint"),
        Job("evaluate", "measures loss over the validation set"),
        Job("export", "writes the network in Hugging Face's format", takes_device=False),
    )
}
