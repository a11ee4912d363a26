"""`runner set` checks a request, sends it to the trainer, and reports the answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from job.run_record import RunStatus
from runner.console import CliContext
from runner.target import RunInfo
from runner.targets.host import HostTarget
from tests.runner.fake_target import FakeTarget

Type = Callable[[str], Result]


@pytest.fixture
def live(fake: FakeTarget, make_run: Callable[..., Path]) -> FakeTarget:
    make_run("warm", step=50, status="running")
    fake.states = [RunInfo("warm", "train", "host", RunStatus.RUNNING, alive=True, step=50)]
    fake.answer = {"step": 50}
    return fake


def test_a_request_is_sent_and_its_answer_shown(type_: Type, live: FakeTarget) -> None:
    done = type_("runner set warm log_every=1 --checkpoint")
    assert done.exit_code == 0, done.stderr
    assert "step 50: log_every=1, checkpoint written" in done.stderr
    assert '"checkpoint": true, "overrides": ["log_every=1"]' in live.did[-1]
    live.answer = {"error": "max_steps=60: the run is at step 61"}
    done = type_("runner set warm max_steps=60 schedule=constant")
    assert done.exit_code == 1
    assert "only checkpoint_every" in done.stderr
    done = type_("runner set warm eval_every=9")
    assert done.exit_code == 1
    assert "the run is at step 61" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("warm", 2, "nothing to do"),
        ("warm lr=1", 1, "only checkpoint_every"),
        ("warm log_every=no", 2, "expected an integer"),
        ("warm nonsense", 2, "nonsense"),
        ("gone log_every=1", 102, "no run 'gone'"),
        ("gone --tag a", 102, "no run 'gone'"),
        ("warm --untag a", 102, "run 'warm' has no tag 'a'; its tags: none"),
        ("warm --tag a log_every=1", 2, "change tags in a command of their own"),
        ("warm --tag ''", 2, "--tag"),
    ],
)
def test_error_sends_nothing(
    type_: Type, live: FakeTarget, words: str, code: int, message: str
) -> None:
    done = type_(f"runner set {words}")
    assert (done.exit_code, message in done.stderr) == (code, True), done.stderr
    assert not live.did


def test_a_run_that_does_not_train_is_refused(type_: Type, live: FakeTarget) -> None:
    live.states = [RunInfo("warm", "train", "host", RunStatus.UNFINISHED, step=50)]
    done = type_("runner set warm log_every=1")
    assert done.exit_code == 1
    assert (
        "is not running (status: unfinished); change a setting when you resume it: "
        "`runner resume warm log_every=1`" in done.stderr
    )
    live.states = [RunInfo("warm", "command", "host", RunStatus.RUNNING, alive=True)]
    assert "has job command" in type_("runner set warm log_every=1").stderr


def test_finished_run_gets_the_command_of_a_new_one(type_: Type, live: FakeTarget) -> None:
    state = RunInfo("warm", "train", "host", RunStatus.FINISHED, step=50, recipe="quickstart")
    live.states = [state]
    line = "`runner host quickstart lr=3 --name NEW-NAME`"
    assert f"to train with lr=3, start a new run: {line}" in type_("runner set warm lr=3").stderr
    live.states = [replace(state, step=100)]  # all of its steps
    assert "quickstart log_every=1 --name" in type_("runner set warm log_every=1").stderr
    assert type_("runner set warm --checkpoint").stderr.endswith("(status: finished)\n")


def test_setting_without_a_run_is_named(type_: Type, live: FakeTarget) -> None:
    done = type_("runner set log_every=1")
    assert (done.exit_code, live.did) == (2, [])
    assert "type `runner set RUN log_every=1`" in done.stderr


def test_tags_of_an_ended_run_change_and_later_launches_add_theirs(
    type_: Type, cli: CliContext, make_run: Callable[..., Path]
) -> None:
    old, new = ({"started": at, "launch": {"tags": tags}} for at, tags in ((1.0, "ab"), (9e9, "b")))
    make_run("old", 1, status="finished", attempts=[old])
    cli.targets["host"] = HostTarget(cli, cli.cwd)
    done = type_("runner set old --tag c --untag b --tag a")
    assert (done.exit_code, done.stderr) == (0, "tags of run 'old': a, c\n")
    assert json.loads(type_("runner runs --tag c --json").stdout)[0]["tags"] == ["a", "c"]
    record = cli.cwd / "volumes/checkpoints/old/run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "attempts": [old, new]}))
    assert json.loads(type_("runner status old --json").stdout)["tags"] == ["a", "c", "b"]
