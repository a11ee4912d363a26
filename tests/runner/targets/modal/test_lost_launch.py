"""Launches: few requests; after a killed client, the run is followed or stopped, never doubled."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.runner.targets.modal.compare_client import IdleExecutor, launch, prepare, runner_words
from tests.runner.targets.modal.conftest import CloudFixture, make_checkout, open_cloud
from tests.waiting import wait_for

WORDS = ("cloud", "tiny", "-y", "--device", "cpu", "max_steps=4000")


@pytest.fixture
def cloud(light_cloud: CloudFixture) -> CloudFixture:
    """Use trainings without a network."""
    return light_cloud


def lose_launch(cloud: CloudFixture, *words: str) -> None:
    """Kill the client between the spawn of the call and the record of it."""
    cloud.slow_down(0.02)
    cloud.modal.inject("VolumePutFiles2", "UNAVAILABLE", times=None)
    process = cloud.start(*WORDS, *words)
    wait_for(lambda: cloud.modal.calls(), 60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    cloud.modal.clear_faults()
    assert "launch.json" not in cloud.committed()


def status(cloud: CloudFixture) -> dict[str, object]:
    return dict(json.loads(cloud.run("status", "tiny", "--json")[0]))


def test_launch_without_a_recorded_call_is_found_and_stopped(cloud: CloudFixture) -> None:
    lose_launch(cloud)
    assert status(cloud)["alive"] is True
    assert "tiny" in cloud.run("runs")[0]
    cloud.run("stop", "tiny")
    wait_for(lambda: not any(task["alive"] for task in cloud.modal.tasks()), 60)
    assert status(cloud)["alive"] is False


def test_container_of_the_lost_launch_records_its_options(cloud: CloudFixture) -> None:
    lose_launch(cloud, "--max-cost", "3")
    wait_for(lambda: "launch.json" in cloud.committed(), 60)
    launch = json.loads((cloud.run_folder() / "launch.json").read_text())
    assert (launch["id"], launch["target_options"]["max_cost"]) == ("", 3.0)
    cloud.run("stop", "tiny")


def test_same_command_attaches_to_the_lost_launch(cloud: CloudFixture) -> None:
    lose_launch(cloud)
    process = cloud.start(*WORDS)
    assert process.stderr is not None
    errors = process.stderr
    wait_for(lambda: "attaching to it" in errors.readline(), 60)
    process.send_signal(signal.SIGINT)
    cloud.finish(process, 101)
    assert len(cloud.modal.calls()) == 1
    assert status(cloud)["status"] == "unfinished"


def test_failed_request_after_the_spawn_does_not_fail_the_launch(cloud: CloudFixture) -> None:
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
    cloud.run("status", "tiny", status=102)  # nothing started, so nothing is recorded


def test_one_unexpected_answer_does_not_end_the_run(cloud: CloudFixture) -> None:
    cloud.modal.inject("FunctionGetOutputs", "NOT_FOUND", times=1)
    _, err = cloud.train("--device", "cpu", "max_steps=6")
    assert "run 'tiny' finished" in err
    assert status(cloud)["status"] == "finished"


def forget(cloud: CloudFixture) -> None:
    """Delete the records of the call, as a simultaneous launch or `runner rm` can."""
    for name in ("launch.json", "cloud.json"):
        (cloud.run_folder() / name).unlink(missing_ok=True)


def test_launch_without_a_record_is_found_by_the_tags_of_its_app(cloud: CloudFixture) -> None:
    lose_launch(cloud)
    cloud.wait_for_step(2)
    forget(cloud)
    assert status(cloud)["alive"] is True
    forget(cloud)
    (listed,) = json.loads(cloud.run("runs", "--json")[0])
    assert listed["alive"] is True
    forget(cloud)
    process = cloud.start(*WORDS)
    assert process.stderr is not None
    wait_for(lambda: "attaching to it" in process.stderr.readline(), 120)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(cloud.modal.calls()) == 1
    forget(cloud)
    cloud.run("stop", "tiny")
    wait_for(lambda: not any(task["alive"] for task in cloud.modal.tasks()), 60)


def test_launch_takes_at_most_five_requests_more_than_modal_run(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    with open_cloud(checkout, tmp_path, executor=IdleExecutor()) as cloud:
        prepare(cloud)
        _, requests = launch(cloud, runner_words("new"))
    assert requests["VolumeGetOrCreate"] == 3  # each volume once
    assert requests["VolumeGetFile2"] == 0  # a new run has no files to read
    assert requests.total() <= 26, requests


def test_launch_has_its_tags_before_its_container_runs(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    with open_cloud(checkout, tmp_path, executor=IdleExecutor()) as cloud:
        prepare(cloud)
        cloud.run("cloud", "tiny", "-y", "--detach", "--gpu", "L4", "--tag", "early")
        [run] = json.loads(cloud.run("runs", "--tag", "early", "--json")[0])
        assert (run["status"], run["recipe"]) == ("starting", "tiny")
