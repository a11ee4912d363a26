"""Tests of launches that Modal has and the client lost: found, attached to, stopped, not doubled."""

from __future__ import annotations

import json
import signal

import pytest

from tests.runner.targets.modal.conftest import Lab
from tests.waiting import wait_for

WORDS = ("cloud", "tiny", "-y", "--device", "cpu", "max_steps=4000")


def lose_launch(lab: Lab) -> None:
    """Kill the client between the spawn of the call and the record of it."""
    lab.slow_down(0.02)
    lab.modal.inject("VolumePutFiles2", "UNAVAILABLE", times=None, after=2)  # 2: the first record
    process = lab.start(*WORDS)
    wait_for(lambda: lab.modal.calls(), 60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lab.modal.clear_faults()
    assert json.loads((lab.run_folder() / "launch.json").read_text())["id"] == ""


def status(lab: Lab) -> dict[str, object]:
    return dict(json.loads(lab.run("status", "tiny", "--json")[0]))


def test_launch_without_a_recorded_call_is_found_and_stopped(lab: Lab) -> None:
    lose_launch(lab)
    assert status(lab)["alive"] is True
    assert "tiny" in lab.run("runs")[0]
    lab.run("stop", "tiny")
    wait_for(lambda: not any(task["alive"] for task in lab.modal.tasks()), 60)
    assert status(lab)["alive"] is False


def test_same_command_attaches_to_it(lab: Lab) -> None:
    lose_launch(lab)
    process = lab.start(*WORDS)
    lab.wait_for_step(10)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 101, err
    assert "attaching to it" in err
    assert len(lab.modal.calls()) == 1
    assert status(lab)["status"] == "unfinished"


def test_failed_request_after_the_spawn_is_no_failed_launch(lab: Lab) -> None:
    lab.run("cloud", "prepare", "tiny", "-y")  # builds the image
    lab.modal.inject("AppClientDisconnect", "INVALID_ARGUMENT", times=None)
    lab.train("--device", "cpu", "max_steps=6")
    assert len(lab.modal.calls()) == 2
    assert status(lab)["status"] == "finished"


def test_failed_spawn_stops_the_app(lab: Lab) -> None:
    lab.modal.inject("FunctionMap", "INVALID_ARGUMENT", times=None)
    lab.train("--device", "cpu", "max_steps=6", status=1)
    assert lab.modal.recorded("AppStop")
    assert not lab.modal.calls()
    assert lab.run("status", "tiny", "--json")[0].count('"alive": false') == 1


@pytest.mark.parametrize(
    "answer", ["NOT_FOUND", "PERMISSION_DENIED", "INVALID_ARGUMENT", "UNKNOWN"]
)
def test_one_unexpected_answer_is_not_the_runs_end(lab: Lab, answer: str) -> None:
    lab.modal.inject("FunctionGetOutputs", answer, times=1)
    _, err = lab.train("--device", "cpu", "max_steps=6")
    assert "run tiny is finished" in err
    assert status(lab)["status"] == "finished"
