"""Changed settings are refused before a machine is rented; a finished run stays finished."""

from __future__ import annotations

import json

import pytest

from job.run_record import Attempt, RunRecord
from runner.runs.attempts import AttemptLog, CloudAttempt
from runner.targets.modal.calls import CallState
from runner.targets.modal.runs import CloudRun, derive_status, end_reason
from tests.runner.targets.modal.cloud_run import put_run
from tests.runner.targets.modal.conftest import CloudFixture


def test_changed_settings_are_refused_and_the_run_stays_finished(cloud: CloudFixture) -> None:
    put_run(cloud, "cl")
    for words in (
        ["resume", "cl", "max_steps=70", "-y"],
        ["cloud", "tiny", "--name", "cl", "max_steps=70", "-y"],
    ):
        _, err = cloud.run(*words, status=2)
        assert "  train.max_steps: 60 → 70\n" in err
        assert "runner cloud RECIPE --name NEW-NAME (add init_from=cl" in err
    assert not cloud.modal.recorded("FunctionCreate")
    assert json.loads(cloud.run("status", "cl", "--json")[0])["status"] == "finished"


def test_permitted_change_is_planned(cloud: CloudFixture) -> None:
    put_run(cloud, "cl", "unfinished", step=20)
    _, err = cloud.run("resume", "cl", "eval_every=7", "--dry-run")
    assert "resumes from step 20 of 60" in err


@pytest.mark.parametrize("status", [1, 2, 101])
def test_finished_run_stays_finished_after_an_attempt_without_a_record(status: int) -> None:
    record = RunRecord(
        "cl", status="finished", attempts=[Attempt(1000.0, 1060.0, reason="finished")]
    )
    ledger = AttemptLog([CloudAttempt("fc-2", "ta-2", 2000.0, 2010.0, 4.2)], "fc-2")
    ledger.end_attempt("failed", status, 2010.0)
    ledger.end_call(status, "failed")
    run = CloudRun("cl", record, None, ledger)
    assert derive_status(run, CallState(False), True) == "finished"
    assert end_reason(run, CallState(False)) == "finished"
