"""A training with every tracker, preempted twice: each store has one run and every step once."""

from __future__ import annotations

import pytest

from job.exit_status import ExitStatus
from tests.model.conftest import Lab
from tests.tracker_stores import WORDS, check_stores


def test_two_preemptions_leave_one_run_with_every_step_once(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRAIN_STEP_HOOK", "tests.model.preempt_with_trackers")
    for _ in range(2):
        lab.train("run", *WORDS, status=ExitStatus.UNFINISHED)
    _, err = lab.train("run", *WORDS)
    assert "Weights & Biases: offline: wandb/ in run" in err
    check_stores(lab.run_folder("run"), "host")
