"""Weights & Biases. Without WANDB_API_KEY it writes to wandb/ in the run's folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from job.trackers import LoggedStep, TrackedRun


class WandbTracker:
    """A W&B run; an attempt that resumes continues it."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self.client: Any = wandb
        self.id = run.id
        is_online = bool(os.environ.get("WANDB_API_KEY"))
        settings = wandb.Settings(console="off", disable_code=True, disable_git=True)
        self.run: Any = wandb.init(
            project=run.project,
            id=run.id,
            name=run.name,
            group=run.group,
            tags=[f"{key}:{value}"[:64] for key, value in run.metadata.items()] + run.tags,
            config=run.config,
            dir=run.folder,
            mode=None if is_online else "offline",  # None: WANDB_MODE decides
            resume="allow" if is_online else None,
            settings=settings,
        )
        self.url = self.run.url or f"offline: wandb/ in {run.name}"
        self.last_step = self.run.step - 1 if is_online else None

    def log(self, steps: Sequence[LoggedStep]) -> None:
        """Log the steps; each table has all samples, because a logged one can't get more rows."""
        for step, numbers, samples in steps:
            rows = [list(sample) for sample in samples]
            table = {"samples": self.client.Table(["step", "text"], rows)} if rows else {}
            self.run.log({**numbers, **table}, step=step)

    def upload(self, checkpoint: Path) -> None:
        """Upload the checkpoint as an artifact."""
        self.run.log_artifact(checkpoint, name=f"{self.id}-checkpoint", type="model")

    def close(self) -> None:
        """Send the remaining values."""
        self.run.finish()
