"""`python -m job.health`, the health check of a container."""

from __future__ import annotations

import os
import time

import pytest

from job import health, run_session
from job.exit_status import ExitStatus
from job.run_record import RunRecord, touch_heartbeat
from tests.waiting import wait_for


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    monkeypatch.setenv("CHECKPOINTS_PATH", str(tmp_path))
    return tmp_path


def make_run(checkpoints, name, status, age=None):
    """Make a run with a record and, if given, a heartbeat that is ``age`` seconds old."""
    RunRecord(name=name, status=status).write(checkpoints / name)
    if age is not None:
        touch_heartbeat(checkpoints / name)
        then = time.time() - age
        os.utime(checkpoints / name / "heartbeat", (then, then))


def test_without_a_run_it_is_unhealthy(checkpoints, capsys):
    assert health.main() == ExitStatus.ERROR
    assert "no active run" in capsys.readouterr().out


def test_missing_volume_is_unhealthy(checkpoints, monkeypatch):
    monkeypatch.setenv("CHECKPOINTS_PATH", str(checkpoints / "missing"))
    assert health.main() == ExitStatus.ERROR


def test_a_fresh_heartbeat_is_healthy(checkpoints, capsys):
    make_run(checkpoints, "warm", "running", age=3)
    assert health.main() == ExitStatus.DONE
    assert capsys.readouterr().out == "warm: heartbeat 3 s ago\n"


def test_stale_heartbeat_is_unhealthy(checkpoints):
    make_run(checkpoints, "hung", "running", age=health.FRESH_HEARTBEAT_S + 1)
    assert health.main() == ExitStatus.ERROR


def test_killed_run_does_not_hide_an_active_one(checkpoints):
    make_run(checkpoints, "killed", "running", age=3600)
    make_run(checkpoints, "warm", "running", age=1)
    assert health.main() == ExitStatus.DONE


@pytest.mark.parametrize("status", ["finished", "unfinished", "failed"])
def test_a_run_that_has_ended_does_not_count(checkpoints, status):
    make_run(checkpoints, "ended", status, age=1)
    assert health.main() == ExitStatus.ERROR


def test_a_heartbeat_without_a_record_does_not_count(checkpoints):
    (checkpoints / "stray").mkdir()
    touch_heartbeat(checkpoints / "stray")
    assert health.main() == ExitStatus.ERROR


def test_heartbeats_continue_after_a_failed_one(tmp_path, monkeypatch):
    beats = []

    def failing(folder):
        beats.append(folder)
        if len(beats) == 2:  # the first is the lock's
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(run_session, "touch_heartbeat", failing)
    monkeypatch.setattr(run_session, "HEARTBEAT_INTERVAL_S", 0.01)
    session = run_session.RunSession(tmp_path, None, "command", [])
    wait_for(lambda: len(beats) > 3)
    session.end("finished", "finished")
