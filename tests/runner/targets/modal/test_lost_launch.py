"""Tests of launches whose client was killed: found, attached to, stopped, never doubled."""

from __future__ import annotations

import json
import signal

from tests.runner.targets.modal.conftest import CloudFixture
from tests.waiting import wait_for

WORDS = ("cloud", "tiny", "-y", "--device", "cpu", "max_steps=4000")


def lose_launch(cloud: CloudFixture) -> None:
    """Kill the client between the spawn of the call and the record of it."""
    cloud.slow_down(0.02)
    cloud.modal.inject("VolumePutFiles2", "UNAVAILABLE", times=None, after=2)  # 2: the first record
    process = cloud.start(*WORDS)
    wait_for(lambda: cloud.modal.calls(), 60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    cloud.modal.clear_faults()
    assert json.loads((cloud.run_folder() / "launch.json").read_text())["id"] == ""


def status(cloud: CloudFixture) -> dict[str, object]:
    return dict(json.loads(cloud.run("status", "tiny", "--json")[0]))


def test_launch_without_a_recorded_call_is_found_and_stopped(cloud: CloudFixture) -> None:
    lose_launch(cloud)
    assert status(cloud)["alive"] is True
    assert "tiny" in cloud.run("runs")[0]
    cloud.run("stop", "tiny")
    wait_for(lambda: not any(task["alive"] for task in cloud.modal.tasks()), 60)
    assert status(cloud)["alive"] is False


def test_same_command_attaches_to_it(cloud: CloudFixture) -> None:
    lose_launch(cloud)
    process = cloud.start(*WORDS)
    cloud.wait_for_step(10)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 101, err
    assert "attaching to it" in err
    assert len(cloud.modal.calls()) == 1
    assert status(cloud)["status"] == "unfinished"


def test_failed_request_after_the_spawn_is_no_failed_launch(cloud: CloudFixture) -> None:
    cloud.run("cloud", "prepare", "tiny", "-y")  # builds the image
    cloud.modal.inject("AppClientDisconnect", "INVALID_ARGUMENT", times=None)
    cloud.train("--device", "cpu", "max_steps=6")
    assert len(cloud.modal.calls()) == 2
    assert status(cloud)["status"] == "finished"


def test_failed_spawn_stops_the_app(cloud: CloudFixture) -> None:
    cloud.modal.inject("FunctionMap", "INVALID_ARGUMENT", times=None)
    cloud.train("--device", "cpu", "max_steps=6", status=1)
    assert cloud.modal.recorded("AppStop")
    assert not cloud.modal.calls()
    assert cloud.run("status", "tiny", "--json")[0].count('"alive": false') == 1


def test_one_unexpected_answer_is_not_the_runs_end(cloud: CloudFixture) -> None:
    cloud.modal.inject("FunctionGetOutputs", "NOT_FOUND", times=1)
    _, err = cloud.train("--device", "cpu", "max_steps=6")
    assert "run tiny is finished" in err
    assert status(cloud)["status"] == "finished"
