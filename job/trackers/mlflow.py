"""MLflow. Without MLFLOW_TRACKING_URI it writes a file store to mlruns/ in the run's folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from job.trackers import LoggedStep, TrackedRun

ID_TAG = "gpt-runner.id"
MAX_METRICS = 1000  # in a request
MAX_PARAMETERS = 100
MAX_VALUE = 6000  # characters of a parameter


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
        found = self.client.search_runs([experiment], f"tags.`{ID_TAG}` = '{run.id}'")
        if found:
            self.id = found[0].info.run_id
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
