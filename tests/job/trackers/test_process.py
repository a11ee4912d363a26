"""Trackers in their own processes: the lines they send, and trackers that fail or hang."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from job.metrics import LineReader
from job.run_record import Attempt, RunRecord
from job.trackers import LoggedStep, TrackerState, process, read_state
from job.trackers.clients import server_address
from job.trackers.follow import Follower
from job.trackers.process import TrackerProcesses
from tests.waiting import wait_for


class ListTracker:
    """A tracker that records its calls."""

    url, last_step = "", -1

    def __init__(self) -> None:
        self.steps: list[LoggedStep] = []

    def log(self, steps: Sequence[LoggedStep]) -> None:
        self.steps += steps

    def upload(self, checkpoint: Path) -> None: ...

    def close(self) -> None: ...


def write(folder: Path, *steps: int, kind: str = "train", mode: str = "a") -> None:
    with (folder / "metrics.jsonl").open(mode) as file:
        file.writelines(
            json.dumps({"kind": kind, "step": step, "loss": step / 2, "mfu": None}) + "\n"
            for step in steps
        )


def test_each_step_is_sent_once_with_all_its_lines(tmp_path: Path) -> None:
    tracker = ListTracker()
    state = TrackerState(step=2)  # of an earlier attempt
    follower = Follower(tmp_path, tracker, state, LineReader(tmp_path / "metrics.jsonl"))
    assert not follower.poll()
    write(tmp_path, 1, 2, 3)
    write(tmp_path, 3, kind="val")
    assert not follower.poll()  # step 3 may get more lines
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step_00000003.txt").write_text("one")
    write(tmp_path, 4)
    assert follower.poll()
    both = {"train/loss": 1.5, "val/loss": 1.5}
    assert tracker.steps == [LoggedStep(3, both, [(3, "one")])]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # half a line
    # A logger replaces the file, and a resume cuts it.
    (tmp_path / "metrics.jsonl").rename(tmp_path / "old")
    write(tmp_path, 1, 2, 3, 4, 5, 6)
    assert follower.poll()
    write(tmp_path, 5, 6, 7, mode="w")
    assert follower.poll(is_over=True)
    assert [each.step for each in tracker.steps] == [3, 4, 5, 6, 7]
    assert [each.samples for each in tracker.steps[1:]] == [()] * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    RunRecord("run", created=1.0, attempts=[Attempt(1.0)]).write(run)
    write(run, 1, 2)
    return run


def test_failing_tracker_reports_the_reason_and_is_turned_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://me:s3cret@host")
    messages: list[str] = []
    trackers = TrackerProcesses(folder, {"mlflow": "p", "unknown": "p"}, messages.append)
    assert "unknown does not start; the training continues" in messages.pop()
    wait_for(lambda: not trackers.urls() and bool(messages), 150)
    trackers.urls()
    assert len(messages) == 1
    assert messages[0].startswith(
        "MLflow failed and is off for this attempt; the training continues"
    )
    for text in (messages[0], (folder / "tracker_mlflow.log").read_text()):
        assert "UnsupportedModelRegistry" in text
        assert "s3cret" not in text
    started = time.monotonic()
    trackers.close(is_finished=True)
    assert time.monotonic() - started < 1
    # A later attempt with a server that works sends everything.
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    messages.clear()
    again = TrackerProcesses(folder, {"mlflow": "p"}, messages.append)
    again.close(is_finished=True)
    assert again.urls() == {"mlflow": "offline: mlruns/ in run"}
    assert read_state(folder, "mlflow") == TrackerState("offline: mlruns/ in run", 2)


def test_a_tracker_that_hangs_delays_the_end_by_a_limited_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts connections and never answers
        port = server.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(process, "STOP_TIMEOUT_S", 0.2)
        messages: list[str] = []
        started = time.monotonic()
        trackers = TrackerProcesses(folder, {"mlflow": "p"}, messages.append)
        assert time.monotonic() - started < 1
        server.settimeout(150)
        connection, _ = server.accept()
        started = time.monotonic()
        trackers.close(is_finished=False)
        assert time.monotonic() - started < 1
        assert "MLflow did not finish within 0 s" in messages[0]
        connection.close()
        assert trackers.started[0].wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("http://127.0.0.1:5000/", "http://127.0.0.1:5000"),
        ("https://me:p@ss@host/mlflow", "https://host/mlflow"),
        ("file:///tmp/mlruns", ""),
        ("databricks", ""),
    ],
)
def test_the_page_of_mlflow_has_no_password(uri: str, address: str) -> None:
    assert server_address(uri) == address
