"""runner pull --watch: a live run comes until it ends, whatever happens meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from runner.console import CliContext
from runner.targets.modal.client import RetryPolicy
from runner.transfer.mapping import open_mapping
from runner.transfer.pull import ATTEMPT_SECONDS, Clock, watch_run
from tests.runner.transfer.conftest import Cloud, tree, write_checkpoint, write_run


class Story:
    """A clock whose waiting is where the next thing happens in the cloud."""

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
        assert self.time < 10_000, "it never ended"


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.transfer.pull.BRIEF", RetryPolicy(attempts=2, first=0.0))
    monkeypatch.setattr("runner.transfer.journal.SETTLED_SECONDS", -60.0)


def watch(cli: CliContext, story: Story) -> None:
    place = open_mapping(cli, "checkpoints")
    watch_run(cli, place, "warm", False, 10.0, story.clock)


def set_status(run: Path, status: str, step: int) -> None:
    (run / "run.json").write_text(
        json.dumps({"name": run.name, "status": status, "step": step, "more": "."})
    )


def test_metrics_and_new_checkpoints_come_until_the_run_ends(
    cli: CliContext, cloud: Cloud, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(cloud.folder("checkpoints") / "warm", [10], status="running")

    def trains_on() -> None:
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 15}\n')

    def ends() -> None:
        write_checkpoint(run, 20)
        set_status(run, "finished", 20)

    def last_commit() -> None:
        (run / "log.txt").write_text("began\nended\n")

    story = Story(trains_on, ends, last_commit)
    watch(cli, story)
    copy = here / "checkpoints/warm"
    assert (copy / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()
    assert tree(copy / "step_00000020") == tree(run / "step_00000020")
    assert (copy / "latest").read_text() == "step_00000020\n"
    assert (copy / "log.txt").read_text() == "began\nended\n"
    assert "warm/step_00000020 is here" in capsys.readouterr().err
    assert story.events == []


def test_faults_and_a_pruned_checkpoint_are_told_once_and_outlived(
    cli: CliContext, cloud: Cloud, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(cloud.folder("checkpoints") / "warm", [10], status="running")

    def goes_away() -> None:
        cloud.standin.inject("VolumeListFiles2", "UNAVAILABLE", times=None)

    def comes_back() -> None:
        cloud.standin.clear_faults()
        set_status(run, "failed", 10)

    watch(cli, Story(goes_away, lambda: cloud.standin.disconnect(), comes_back))
    errors = capsys.readouterr().err
    assert errors.count("not all came") == 1
    assert "run warm is failed" in errors


def test_an_unfinished_run_is_waited_for_as_long_as_another_attempt_takes(
    cli: CliContext, cloud: Cloud, here: Path
) -> None:
    run = write_run(cloud.folder("checkpoints") / "warm", [10], status="unfinished")

    def resumes() -> None:
        set_status(run, "running", 10)

    def is_preempted() -> None:
        set_status(run, "unfinished", 12)

    story = Story(resumes, is_preempted)
    watch(cli, story)
    assert ATTEMPT_SECONDS <= story.time <= ATTEMPT_SECONDS + 60


def test_a_run_that_is_not_there_yet_is_waited_for(
    cli: CliContext, cloud: Cloud, here: Path
) -> None:
    watch(cli, Story(lambda: None, lambda: write_run(cloud.folder("checkpoints") / "warm", [10])))
    assert (here / "checkpoints/warm/latest").read_text() == "step_00000010\n"


def test_the_command_watches_a_run_that_has_ended_already(
    type_: Callable[[str], Result], cloud: Cloud, here: Path
) -> None:
    write_run(cloud.folder("checkpoints") / "warm", [10])
    result = type_("runner pull checkpoints warm --watch --every 0.1")
    assert result.exit_code == 0, result.output
    assert "run warm is finished" in result.stderr
    assert type_("runner pull data --watch").exit_code == 2
