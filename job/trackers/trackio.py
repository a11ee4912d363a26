"""Trackio. Without TRACKIO_SPACE_ID or TRACKIO_SERVER_URL it writes to trackio/ in the folder."""

from __future__ import annotations

import os

from job.trackers import TRACKERS, TrackedRun
from job.trackers.wandb import WandbTracker


class TrackioTracker(WandbTracker):
    """A Trackio run, which has the methods of a W&B run; an attempt that resumes continues it."""

    def __init__(self, run: TrackedRun) -> None:
        if not TRACKERS["trackio"].is_online([name for name in os.environ if os.environ[name]]):
            os.environ.setdefault("TRACKIO_DIR", str(run.folder / "trackio"))  # read at import
        import trackio

        self.client, self.id = trackio, run.id
        self.run = trackio.init(
            project=run.project,
            name=run.id,
            group=run.group,
            config={**run.config, "metadata": {**run.metadata, "tags": run.tags}},
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.last_step = int(self.run._next_step) - 1
        space, server = os.environ.get("TRACKIO_SPACE_ID"), os.environ.get("TRACKIO_SERVER_URL")
        page = f"https://huggingface.co/spaces/{space}" if space else server
        self.url = page.partition("?")[0] if page else f"offline: trackio/ in {run.name}"
