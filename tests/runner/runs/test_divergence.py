"""Runs that exist on two targets: never active twice, and resumed from the newest checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from job.run_record import RunRecord, read_record, touch_heartbeat
from runner.console import CliContext
from runner.errors import RunnerError
from runner.jobs import LaunchArguments
from runner.launch.resume import with_previous_resources
from runner.plan import RemoteRunState, refuse_divergence
from runner.request import TargetOptions
from runner.runs.find import local_state
from runner.target import LaunchHandle, RunInfo
from runner.targets.host import HostTarget
from runner.targets.modal.options import ModalOptions, parse_options
from runner.targets.modal.runs import MirroredRuns
from runner.targets.modal.target import ModalTarget
from tests.runner.fake_target import FakeTarget

Type = Callable[[str], Result]

TOKEN = {"MODAL_TOKEN_ID": "a", "MODAL_TOKEN_SECRET": "b"}
LINES = ["runner host warm --dry-run", "runner resume warm --target host --dry-run"]


@pytest.fixture
def cloud(cli: CliContext, checkout: Path, tmp_path: Path) -> FakeTarget:
    """Return a fake remote target with an account, next to the host."""
    copies = MirroredRuns(checkout / "volumes" / "checkpoints", "cloud")
    fake = FakeTarget(tmp_path / "remote", name="cloud", copies=copies)
    cli.targets = {"cloud": fake, "host": HostTarget(cli, checkout, has_module=lambda name: True)}
    cli.environ = {**cli.environ, **TOKEN}
    return fake


@pytest.fixture
def both(cloud: FakeTarget, make_run: Callable[..., Path]) -> Callable[..., Path]:
    """Return ``both(40, remote=50)``, which makes the run warm at these steps on both targets."""

    def make(local: int | None, remote: int | None, created: float = 7.0) -> Path:
        attempts = [{"started": 5.0, "ended": 9.0, "launch": {"target": "cloud"}}]
        folder = make_run("warm", step=local, status="unfinished", attempts=attempts, created=7.0)
        (folder / "cloud.json").write_text("{}")
        other = cloud.checkout / "volumes" / "checkpoints" / "warm"
        other.mkdir(parents=True)
        record = json.loads((folder / "run.json").read_text())
        (other / "run.json").write_text(json.dumps({**record, "created": created}))
        if remote is not None:
            (other / "latest").write_text(f"step_{remote:08d}\n")
        state = RunInfo("warm", "train", "cloud", "unfinished", step=remote or 0, started=5.0)
        cloud.states = [state]
        return folder

    return make


class TestLocalStart:
    @pytest.mark.parametrize("line", LINES)
    def test_a_run_active_on_the_remote_is_not_started(
        self, line: str, type_: Type, cloud: FakeTarget, both: Callable[..., Path]
    ) -> None:
        both(None, None)
        cloud.states = [replace(cloud.states[0], status="running", alive=True)]
        refused = type_(line)
        assert refused.exit_code == 1
        commands = "`runner stop warm`, then `runner pull checkpoints warm`"
        assert f"run 'warm' is running on cloud; stop it first: {commands}" in refused.stderr

    @pytest.mark.parametrize("line", LINES)
    def test_an_older_checkpoint_is_not_resumed(
        self, line: str, type_: Type, both: Callable[..., Path]
    ) -> None:
        folder = both(40, remote=50)
        refused = type_(line)
        assert refused.exit_code == 2
        assert "is at step 50 on cloud and only at step 40 on host" in refused.stderr
        assert "`runner pull checkpoints warm`" in refused.stderr
        # The alternative that the error names: resume the older one under a different name.
        folder.rename(folder.with_name("older"))
        assert "resumes from step 40" in type_("runner resume older --target host --dry-run").stderr

    def test_a_run_with_only_a_remote_checkpoint_is_not_started(
        self, type_: Type, both: Callable[..., Path]
    ) -> None:
        both(None, remote=50)
        refused = type_(LINES[0])
        assert refused.exit_code == 2
        message = "is at step 50 on cloud and has no checkpoint on host; copy it first"
        assert message in refused.stderr

    def test_the_same_and_a_newer_step_are_resumed(
        self, type_: Type, both: Callable[..., Path], cloud: FakeTarget
    ) -> None:
        both(50, remote=50)
        assert "resumes from step 50" in type_(LINES[0]).stderr
        (cloud.checkout / "volumes/checkpoints/warm/latest").write_text("step_00000040\n")
        assert "resumes from step 50" in type_(LINES[1]).stderr

    def test_different_remote_run_of_that_name_is_ignored(
        self, type_: Type, both: Callable[..., Path]
    ) -> None:
        both(40, remote=50, created=8.0)
        assert "resumes from step 40" in type_(LINES[0]).stderr

    def test_run_that_was_never_remote_sends_no_request(
        self,
        type_: Type,
        cloud: FakeTarget,
        make_run: Callable[..., Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        make_run("warm", step=40, status="unfinished")
        monkeypatch.setattr(cloud, "state", lambda run: pytest.fail("the remote target was asked"))
        assert "resumes from step 40" in type_(LINES[0]).stderr

    def test_a_pushed_run_asks_the_remote(
        self, type_: Type, both: Callable[..., Path], checkout: Path
    ) -> None:
        folder = both(40, remote=50)
        (folder / "cloud.json").unlink()
        record = json.loads((folder / "run.json").read_text())
        record["attempts"][0]["launch"]["target"] = "host"
        (folder / "run.json").write_text(json.dumps(record))
        assert type_(LINES[0]).exit_code == 0
        journal = checkout / "volumes/cache/.sync/vo-1.jsonl"
        journal.parent.mkdir(parents=True)
        journal.write_text(json.dumps({"path": "warm/run.json"}) + "\n")
        assert type_(LINES[0]).exit_code == 2

    @pytest.mark.parametrize(
        ("variables", "why"),
        [
            ({}, "this machine has no Modal token"),
            ({**TOKEN, "MODAL_SERVER_URL": "http://127.0.0.1:1"}, "Modal can't be reached"),
        ],
    )
    def test_an_unreachable_remote_is_one_warning(
        self,
        variables: dict[str, str],
        why: str,
        type_: Type,
        cli: CliContext,
        both: Callable[..., Path],
        checkout: Path,
    ) -> None:
        both(40, remote=50)
        cli.environ = {"PATH": cli.environ["PATH"], "HOME": cli.environ["HOME"], **variables}
        cli.targets["cloud"] = ModalTarget(cli, checkout)
        planned, resumed = type_(LINES[0]), type_(LINES[1])
        for result in (planned, resumed):
            assert result.exit_code == 0
            assert result.stderr.count("warning:") == 1
            assert why in result.stderr
        assert "could not ask cloud whether run 'warm' ran there since" in planned.stderr


class TestMissingRun:
    def test_a_remote_run_is_named_with_the_commands(
        self, type_: Type, both: Callable[..., Path]
    ) -> None:
        folder = both(40, remote=50)
        folder.rename(folder.with_name("other"))
        refused = type_("runner host sample --name warm")
        assert refused.exit_code == 102
        ways = "`runner cloud sample --name warm`, or copy it first: `runner pull checkpoints warm`"
        assert f"run 'warm' is on cloud, not on host: run {ways}" in refused.stderr

    def test_a_local_run_is_named_with_the_commands(
        self, type_: Type, cloud: FakeTarget, make_run: Callable[..., Path]
    ) -> None:
        make_run("warm", step=40)
        refused = type_("runner cloud evaluate --name warm")
        assert refused.exit_code == 102
        command = "`runner host evaluate --name warm`"
        assert f"run 'warm' is on this machine, not on cloud: run {command}" in refused.stderr

    def test_an_unreachable_remote_is_a_missing_run(
        self, type_: Type, cli: CliContext, cloud: FakeTarget, checkout: Path
    ) -> None:
        assert "no run 'warm'" in type_("runner host sample --name warm").stderr
        cli.environ = {**cli.environ, "MODAL_SERVER_URL": "http://127.0.0.1:1"}
        cli.targets["cloud"] = ModalTarget(cli, checkout)
        refused = type_("runner host sample --name warm")
        assert refused.exit_code == 102
        assert "could not ask cloud for run 'warm': Modal can't be reached" in refused.stderr
        assert "no run 'warm'" in refused.stderr


class TestRemoteStart:
    def test_the_local_state_of_the_same_run(
        self, cli: CliContext, checkout: Path, make_run: Callable[..., Path]
    ) -> None:
        folder = make_run("warm", step=50, status="running", created=7.0)
        record = read_record(folder)
        assert record is not None
        state = RemoteRunState("host", is_remote=False, step=50)
        assert local_state(cli, checkout, "warm", record) == state
        touch_heartbeat(folder)
        assert local_state(cli, checkout, "warm", record) == replace(state, is_active=True)
        assert local_state(cli, checkout, "warm", RunRecord("warm", created=8.0)) is None
        assert local_state(cli, checkout, "warm", None) is None

    def test_command_ran_on_the_target_of_its_last_start(
        self, cli: CliContext, checkout: Path, make_run: Callable[..., Path]
    ) -> None:
        folder = make_run("warm", job="command", created=7.0)
        record = read_record(folder)
        assert record is not None
        same = local_state(cli, checkout, "warm", record)
        older = local_state(cli, checkout, "warm", replace(record, attempts=[]))
        assert (same and same.ran_since, older and older.ran_since) == (False, True)
        assert older is not None
        message = r"has run on host since, .* `runner push checkpoints warm`"
        with pytest.raises(RunnerError, match=message):
            refuse_divergence("warm", "cloud", None, older, str(folder))


OPTIONS = parse_options(gpu="H100:8", timeout="5h")
LAST = LaunchHandle("warm", "cloud", "train", "fc-1", 5.0, gpus=8, target_options=OPTIONS)
ON_CPU = replace(LAST, device="cpu", gpus=1, target_options=parse_options(timeout="5h"))
ON_HOST = replace(LAST, target="host", target_options=TargetOptions())


@pytest.mark.parametrize(
    ("target", "last", "arguments", "options", "expected"),
    [
        ("cloud", LAST, {}, {}, (8, None, OPTIONS)),  # all resources are kept
        ("host", LAST, {}, {}, (None, None, ModalOptions())),  # a launch on another target
        ("cloud", ON_CPU, {}, {}, (1, "cpu", parse_options(timeout="5h"))),
        # GPUs replace an earlier cpu.
        ("cloud", ON_CPU, {}, {"gpu": "L4:2"}, (1, None, parse_options(timeout="5h", gpu="L4:2"))),
        ("host", replace(ON_HOST, device="cpu"), {"gpus": 2}, {}, (2, None, TargetOptions())),
        # A cpu replaces earlier GPUs, if they are rented.
        ("cloud", LAST, {"device": "cpu"}, {}, (None, "cpu", parse_options(timeout="5h"))),
        ("host", ON_HOST, {"device": "cpu"}, {}, (8, "cpu", TargetOptions())),
    ],
)
def test_a_resume_inherits_the_resources_of_the_last_launch_on_its_target(
    target: str,
    last: LaunchHandle,
    arguments: dict[str, Any],
    options: dict[str, Any],
    expected: tuple[int | None, str | None, TargetOptions],
) -> None:
    fake = FakeTarget(Path("nowhere"), name=target, last=last)
    resumed, resumed_options = with_previous_resources(
        fake, "warm", LaunchArguments(**arguments), parse_options(**options)
    )
    assert (resumed.gpus, resumed.device, resumed_options) == expected
