"""Write a run to the stand-in's volume without training it."""

from __future__ import annotations

import json

from job.recipe import load
from runner.runs.attempts import AttemptLog, CloudAttempt
from runner.targets.modal.volume import ModalVolumeFiles
from tests.runner.targets.modal.conftest import CloudFixture

STARTED, ENDED = 1000.0, 1060.0  # seconds since the epoch


def put_run(
    cloud: CloudFixture,
    name: str,
    status: str = "finished",
    step: int = 60,
    overrides: tuple[str, ...] = (),
) -> None:
    """Write the run ``name`` of the recipe ``tiny`` with one attempt to the volume."""
    attempt = {
        "started": STARTED,
        "ended": ENDED,
        "reason": status,
        "launch": {"target": "cloud", "gpu": "H100"},
    }
    if status == "running":
        attempt.update(ended=None, reason=None)
    record = {
        "name": name,
        "status": status,
        "step": step,
        "max_steps": 60,
        "val_loss": 2.5,
        "attempts": [attempt],
    }
    ledger = AttemptLog([CloudAttempt("fc-1", "ta-1", STARTED, ENDED, 4.2, "H100")], "fc-1", "ap-1")
    if status != "running":
        ledger.end_attempt(status, 0 if status == "finished" else 101, ENDED)
        ledger.end_call(0 if status == "finished" else 101, status)
    texts = {
        "run.json": json.dumps(record),
        "cloud.json": ledger.dumps(),
        "recipe.yaml": load(cloud.checkout / "configs" / "tiny.yaml", overrides).to_yaml(),
        "latest": f"step_{step:08d}\n",
        "log.txt": f"step {step}/60\n",
    }
    with cloud.modal.active():
        files = ModalVolumeFiles("checkpoints", cloud.environ)
        for file, text in texts.items():
            files.write(f"{name}/{file}", text)
