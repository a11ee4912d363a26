"""`runner set` changes a live training without a restart, in every process at the same step."""

from __future__ import annotations

import pytest

from job.live_request import LiveRequest
from job.recipe import load
from job.run_record import REQUEST_NAME, read_record
from job.step_folders import steps
from tests.model.conftest import Lab, Unbroken
from tests.model.test_resume import final_bytes, losses


def train_with_request(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, request: str, *words: str, processes: int = 1
) -> str:
    """Train the run ``live``, send ``request`` after step 12, and return what it logged."""
    monkeypatch.setenv("TRAIN_STEP_HOOK", "tests.model.request_hook")
    monkeypatch.setenv("LIVE_REQUEST", request)
    monkeypatch.setenv("REQUEST_FILE", str(lab.run_folder("live") / REQUEST_NAME))
    lab.train("live", *words, processes=processes)
    assert not (lab.run_folder("live") / REQUEST_NAME).exists()
    return (lab.run_folder("live") / "log.txt").read_text()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_request_changes_settings_and_writes_a_checkpoint(
    lab: Lab, unbroken: Unbroken, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    words = ["keep_last=99", "keep_best=false", "micro_batch=4"]
    changes = ["log_every=1", "checkpoint_every=7"]
    request = LiveRequest("r1", True, changes).to_json()
    log = train_with_request(lab, monkeypatch, request, *words, processes=processes)
    run = lab.run_folder("live")
    record = read_record(run)
    assert record is not None
    assert record.request["id"] == "r1"
    request_step = record.request["step"]
    assert request_step in (12, 13)  # with several processes one step later
    expected = {10, request_step, 60} | set(range(14, 60, 7))
    assert set(steps(run)) == expected
    assert f"step {request_step + 1}/60" in log
    assert load(run / "recipe.yaml").train.log_every == 1
    assert record.overrides[-2:] == changes
    if processes == 1:
        assert final_bytes(run)[0] == final_bytes(unbroken(*words))[0]
        assert losses(run) == losses(unbroken(*words))


def test_a_longer_run_equals_one_that_was_planned_so(
    lab: Lab, unbroken: Unbroken, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["schedule=constant", "max_steps=20"]
    request = LiveRequest("r1", overrides=["max_steps=30"]).to_json()
    train_with_request(lab, monkeypatch, request, *words)
    longer = unbroken("schedule=constant", "max_steps=30")
    assert final_bytes(lab.run_folder("live"))[0] == final_bytes(longer)[0]


@pytest.mark.parametrize(
    ("request_text", "why"),
    [
        ('{"id": "r", "overrides": ["lr=1"]}', "only checkpoint_every"),
        ('{"id": "r", "overrides": ["max_steps=5"]}', "step 12"),
        ('{"id": "r", "overrides": ["max_steps=90"]}', "past steps"),
        ('{"id": "r", "overrides": ["log_every=no"]}', "log_every"),
        ('{"id": "r", "overrides": "log_every=1"}', ""),
        ("{", ""),
    ],
)
def test_refused_request_does_not_change_the_run(
    lab: Lab, unbroken: Unbroken, monkeypatch: pytest.MonkeyPatch, request_text: str, why: str
) -> None:
    train_with_request(lab, monkeypatch, request_text)
    record = read_record(lab.run_folder("live"))
    assert record is not None
    assert why in record.request.get("error", "")
    assert bool(why) == bool(record.request)
    assert final_bytes(lab.run_folder("live")) == final_bytes(unbroken())
