"""A client for each tracker. Without the variables of its server it writes to the run's folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from job.trackers import TRACKERS, LoggedStep, TrackedRun

ID_TAG = "gpt-runner.id"
MAX_METRICS = 1000  # in a request
MAX_PARAMETERS = 100
MAX_VALUE = 6000  # characters of a parameter


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


class MlflowTracker:
    """An MLflow run, found by its tag in later attempts."""

    def __init__(self, run: TrackedRun) -> None:
        # The file store needs no database; MLflow 3 asks for this before it uses one.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag

        self.metric, self.tag = Metric, RunTag
        local = run.folder / "mlruns"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or local.as_uri()
        self.client = MlflowClient(uri)
        known = self.client.get_experiment_by_name(run.project)
        experiment = known.experiment_id if known else self.client.create_experiment(run.project)
        runs = self.client.search_runs([experiment], f"tags.`{ID_TAG}` = '{run.id}'")
        if runs:
            self.id = runs[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
        else:
            metadata = {**run.metadata, **({"group": run.group} if run.group else {})}
            tags = {ID_TAG: run.id, **metadata, **dict.fromkeys(run.tags, "true")}
            self.id = self.client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
            parameters = [Param(k, str(v)[:MAX_VALUE]) for k, v in flatten(run.config).items()]
            for at in range(0, len(parameters), MAX_PARAMETERS):
                self.client.log_batch(self.id, params=parameters[at : at + MAX_PARAMETERS])
            self.client.log_dict(self.id, run.config, "config.json")
        history = self.client.get_metric_history(self.id, "step")
        self.last_step = max((point.step for point in history), default=-1)
        page = f"/#/experiments/{experiment}/runs/{self.id}"
        offline = f"offline: mlruns/ in {run.name}" if uri == local.as_uri() else ""
        server = server_address(uri)
        self.url = server + page if server else offline

    def log(self, steps: Sequence[LoggedStep]) -> None:
        """Log the steps. Their numbers are a metric too, by which a later attempt continues."""
        now = int(time.time() * 1000)
        metrics = [
            self.metric(key, value, now, step.step)
            for step in steps
            for key, value in {**step.numbers, "step": step.step}.items()
        ]
        for at in range(0, len(metrics), MAX_METRICS):
            self.client.log_batch(self.id, metrics=metrics[at : at + MAX_METRICS])
        for step in steps:
            if step.samples:  # in the format of mlflow.log_table, which needs pandas
                rows = {"columns": ["step", "text"], "data": [list(row) for row in step.samples]}
                self.client.log_dict(self.id, rows, "samples.json")
                tables = json.dumps([{"path": "samples.json", "type": "table"}])
                self.client.set_tag(self.id, "mlflow.loggedArtifacts", tables)

    def upload(self, checkpoint: Path) -> None:
        """Upload the checkpoint as artifacts."""
        self.client.log_artifacts(self.id, str(checkpoint), "checkpoint")

    def close(self) -> None:
        """Mark the attempt's end."""
        self.client.set_terminated(self.id)


def server_address(uri: str) -> str:
    """Return the address of a server's pages without its password; '' for other stores."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def flatten(tree: dict[str, object], above: str = "") -> dict[str, object]:
    """Return ``{"train.lr": 0.001}`` for ``{"train": {"lr": 0.001}}``."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        name = f"{above}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
