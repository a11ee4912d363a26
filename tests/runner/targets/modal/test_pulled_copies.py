"""Pulled copies of runs: without an account, offline, or deleted on Modal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from runner.console import CliContext
from runner.runs.attempts import AttemptLog, CloudAttempt
from runner.runs.store import write_launch
from runner.target import LaunchHandle
from runner.targets.host import HostTarget
from runner.targets.modal.image import STATE_FILE
from runner.targets.modal.target import ModalTarget

Type, MakeRun = Callable[[str], Result], Callable[..., Path]


@pytest.fixture
def pulled(cli: CliContext, checkout: Path, make_run: MakeRun) -> MakeRun:
    """Return a function that makes a pulled copy of the run ``cl`` with a status."""
    cli.targets = {
        "cloud": ModalTarget(cli, checkout),
        "host": HostTarget(cli, checkout, has_module=lambda name: True),
    }
    cache = checkout / "volumes" / "cache"
    (cache / STATE_FILE).parent.mkdir(parents=True, exist_ok=True)
    (cache / STATE_FILE).write_text('{"an-account": {"fingerprint": {}, "built": 1}}')

    def make(status: str, step: int = 100) -> Path:
        attempts = [{"started": 5.0, "ended": 9.0, "reason": status, "launch": {"target": "cloud"}}]
        folder = make_run("cl", step=step, status=status, attempts=attempts)
        (folder / "log.txt").write_text("a line of its log\n")
        return folder

    return make


class TestWithoutAToken:
    def test_listed_as_a_copy(self, type_: Type, pulled: MakeRun) -> None:
        pulled("finished")
        assert "cloud (copy)" in type_("runner runs").stdout
        (run,) = json.loads(type_("runner runs --json").stdout)
        values = [run[name] for name in ("run", "target", "status", "is_copy")]
        assert values == ["cl", "cloud", "finished", True]

    @pytest.mark.parametrize(
        ("line", "word"),
        [
            ("status cl", "cl (train on cloud; the copy that was pulled)"),
            ("logs cl", "a line of its log"),
            ("watch cl", "step 100/100"),
        ],
    )
    def test_status_and_logs_of_a_copy(
        self, line: str, word: str, type_: Type, pulled: MakeRun
    ) -> None:
        pulled("finished")
        shown = type_(f"runner {line}")
        assert shown.exit_code == 0, shown.stderr
        assert word in shown.stdout

    def test_copy_with_a_damaged_record_is_listed(self, type_: Type, pulled: MakeRun) -> None:
        folder = pulled("finished")
        launch = LaunchHandle("cl", "cloud", "train", "fc-1", 4.0, location="ap-1")
        write_launch(folder, launch)
        (folder / "run.json").write_text("{")
        (run,) = json.loads(type_("runner runs --json").stdout)
        values = [run[name] for name in ("target", "status", "reason")]
        assert values == ["cloud", "lost", "run.json is damaged"]

    def test_copy_is_resumed_on_the_host(self, type_: Type, pulled: MakeRun) -> None:
        pulled("unfinished", step=40)
        planned = type_("runner resume cl --target host --dry-run")
        assert planned.exit_code == 0, planned.stderr
        assert "resumes from step 40 of 100" in planned.stderr
        refused = type_("runner resume cl")
        assert refused.exit_code == 1
        assert "`runner resume cl --target host`" in refused.stderr
        assert "`runner resume cl --target host` resumes it" in type_("runner status cl").stderr

    def test_copy_of_an_active_run_shows_its_age(
        self, type_: Type, pulled: MakeRun, checkout: Path
    ) -> None:
        folder = pulled("running", step=40)
        now = time.time()

        def write_attempt(seen: float, status: int | None = None) -> None:
            """Write the pulled record of the attempt on Modal."""
            attempt = CloudAttempt("fc-1", "ta-1", 5.0, seen, 4.2)
            AttemptLog([attempt], "fc-1", "ap-1", status=status).write(folder)

        write_attempt(now - 7200)
        assert "running 2h ago" in type_("runner runs").stdout
        assert "status    running 2h ago\n" in type_("runner status cl").stdout
        assert "run 'cl' was running 2h ago" in type_("runner watch cl").stderr
        status = json.loads(type_("runner status cl --json").stdout)
        values = [status[name] for name in ("status", "alive", "last_seen")]
        assert values == ["running", False, now - 7200]
        write_attempt(now - 5)
        assert "status    running\n" in type_("runner status cl").stdout
        write_attempt(now - 7200, status=100)  # the machine crashed before the record was written
        assert "status    failed\n" in type_("runner status cl").stdout

    def test_copy_cannot_be_stopped(self, type_: Type, pulled: MakeRun) -> None:
        pulled("running")
        refused = type_("runner stop cl")
        assert (refused.exit_code, "only the copy that was pulled" in refused.stderr) == (1, True)


class TestNote:
    WORDS = "warning: skipped target cloud: this machine has no Modal token"

    @pytest.mark.parametrize("line", ["runs", "status cl", "watch", "watch cl", "logs cl"])
    def test_no_note_if_the_copy_is_finished(self, line: str, type_: Type, pulled: MakeRun) -> None:
        pulled("finished")
        assert self.WORDS not in type_(f"runner {line}").stderr

    @pytest.mark.parametrize("line", ["runs", "status cl", "logs cl"])
    @pytest.mark.parametrize("status", ["running", "unfinished"])
    def test_one_note_if_the_run_may_be_further(
        self, line: str, status: str, type_: Type, pulled: MakeRun
    ) -> None:
        pulled(status)
        assert type_(f"runner {line}").stderr.count(self.WORDS) == 1

    def test_note_without_a_local_copy(self, type_: Type, pulled: MakeRun) -> None:
        assert self.WORDS in type_("runner runs").stderr
        assert type_("runner status cl").stderr.count(self.WORDS) == 1

    def test_no_note_about_a_local_run(self, type_: Type, pulled, make_run: MakeRun) -> None:
        make_run("mine", step=100)
        assert type_("runner status mine").stderr == ""


@pytest.mark.parametrize(("status", "warned"), [("finished", 0), ("unfinished", 1)])
def test_offline_note_if_the_run_may_have_been_resumed_on_modal(
    status: str, warned: int, type_: Type, cli: CliContext, pulled, make_run: MakeRun
) -> None:
    make_run("mine", step=50, status=status)
    token = {"MODAL_TOKEN_ID": "a", "MODAL_TOKEN_SECRET": "b"}
    cli.environ = {**cli.environ, **token, "MODAL_SERVER_URL": "http://127.0.0.1:1"}
    cli.targets["cloud"] = ModalTarget(cli, cli.cwd)
    stderr = type_("runner status mine").stderr
    assert stderr.count("skipped target cloud: Modal can't be reached") == warned
