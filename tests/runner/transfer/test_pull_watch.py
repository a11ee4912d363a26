"""runner pull --watch pulls a run until it ends."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from job.run_record import RunStatus
from runner.console import CliContext
from runner.target import LaunchHandle, RunInfo
from runner.targets.modal.target import ModalTarget
from runner.transfer.mapping import open_mapping
from runner.transfer.pull import RESTART_TIMEOUT_S, Clock, watch_run
from tests.runner.transfer.conftest import Cloud, tree, write_checkpoint, write_run


class Timeline:
    """A clock; each sleep causes the next event on Modal."""

    def __init__(self, *events: Callable[[], object]) -> None:
        self.events = list(events)
        self.time = 0.0

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.time, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        if self.events:
            self.events.pop(0)()
        assert self.time < 10_000, "the watch did not end"


@pytest.fixture(autouse=True)
def poll_without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.transfer.pull.WATCH_ATTEMPTS", 2)
    monkeypatch.setattr("runner.transfer.mapping.SETTLE_TIME_S", -60.0)


def watch(cli: CliContext, timeline: Timeline) -> None:
    mapping = open_mapping(cli, "checkpoints")
    watch_run(cli, mapping, "warm", False, 10.0, timeline.clock)


def set_status(run: Path, status: str, step: int) -> None:
    (run / "run.json").write_text(
        json.dumps({"name": run.name, "status": status, "step": step, "more": "."})
    )


def test_watch_pulls_metrics_and_checkpoints_until_the_run_ends(
    cli: CliContext, cloud: Cloud, local: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(cloud.folder("checkpoints") / "warm", [10], status="running")

    def continues() -> None:
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 15}\n')

    def ends() -> None:
        write_checkpoint(run, 20)
        set_status(run, "finished", 20)

    def last_commit() -> None:
        (run / "log.txt").write_text("started\nended\n")

    timeline = Timeline(continues, ends, last_commit)
    watch(cli, timeline)
    copy = local / "checkpoints/warm"
    assert (copy / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()
    assert tree(copy / "step_00000020") == tree(run / "step_00000020")
    assert (copy / "latest").read_text() == "step_00000020\n"
    assert (copy / "log.txt").read_text() == "started\nended\n"
    assert "pulled warm/step_00000020" in capsys.readouterr().err
    assert timeline.events == []


def test_watch_reports_a_failure_once_and_continues(
    cli: CliContext, cloud: Cloud, local: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(cloud.folder("checkpoints") / "warm", [10], status="running")

    def fails() -> None:
        cloud.standin.inject("VolumeListFiles2", "UNAVAILABLE", times=None)

    def recovers() -> None:
        cloud.standin.clear_faults()
        set_status(run, "failed", 10)

    watch(cli, Timeline(fails, lambda: cloud.standin.disconnect(), recovers))
    errors = capsys.readouterr().err
    assert errors.count("the pull is incomplete") == 1
    assert "run 'warm' ended: failed" in errors


def test_watch_waits_for_the_next_attempt_of_an_unfinished_run(
    cli: CliContext, cloud: Cloud, local: Path
) -> None:
    run = write_run(cloud.folder("checkpoints") / "warm", [10], status="unfinished")

    def resumes() -> None:
        set_status(run, "running", 10)

    def is_preempted() -> None:
        set_status(run, "unfinished", 12)

    timeline = Timeline(resumes, is_preempted)
    watch(cli, timeline)
    assert RESTART_TIMEOUT_S <= timeline.time <= RESTART_TIMEOUT_S + 60


def test_watch_waits_for_a_run_that_does_not_exist_yet(
    cli: CliContext, cloud: Cloud, local: Path
) -> None:
    watch(
        cli, Timeline(lambda: None, lambda: write_run(cloud.folder("checkpoints") / "warm", [10]))
    )
    assert (local / "checkpoints/warm/latest").read_text() == "step_00000010\n"


def test_watch_of_an_ended_run_pulls_it_once(
    invoke: Callable[[str], Result], cloud: Cloud, local: Path
) -> None:
    write_run(cloud.folder("checkpoints") / "warm", [10])
    result = invoke("runner pull checkpoints warm --watch --interval 0.1")
    assert result.exit_code == 0, result.output
    assert "run 'warm' ended: finished" in result.stderr
    assert invoke("runner pull data --watch").exit_code == 2


@pytest.mark.parametrize("status", ["running", "unfinished"])
def test_watch_follows_the_function_call_and_not_the_record_of_a_killed_run(
    cli: CliContext,
    cloud: Cloud,
    local: Path,
    status: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_run(cloud.folder("checkpoints") / "warm", [10], status=status)
    timeline = Timeline()

    def state(self: ModalTarget, run: str) -> RunInfo:
        alive = timeline.time < 600.0  # of the call
        status = RunStatus.RUNNING if alive else RunStatus.LOST
        return RunInfo(run, "train", "cloud", status, alive=alive)

    launch = LaunchHandle("warm", "cloud", "train", "fc-1", 1.0)
    monkeypatch.setattr(ModalTarget, "launched", lambda self, run: launch)
    monkeypatch.setattr(ModalTarget, "state", state)
    watch(cli, timeline)
    assert 600 <= timeline.time < 620
    assert "run 'warm' ended: lost" in capsys.readouterr().err


def test_watch_does_not_replace_files_of_a_run_that_is_active_on_this_machine(
    cli: CliContext, cloud: Cloud, local: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(cloud.folder("checkpoints") / "warm", [10])
    run = write_run(local / "checkpoints/warm", [])
    (run / "log.txt").write_text("mine\n")
    lock = (run / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def ends() -> None:
        assert (run / "log.txt").read_text() == "mine\n"
        lock.close()

    watch(cli, Timeline(lambda: None, ends))
    message = "run 'warm' is active on this machine; stop it first: `runner stop warm`"
    assert message in capsys.readouterr().err
    assert (run / "latest").read_text() == "step_00000010\n"
