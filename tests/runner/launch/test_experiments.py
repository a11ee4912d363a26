"""`runner host run FILE`, which does not import the file, and `runner new`."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from runner.commands import setup
from runner.console import CliContext
from tests.runner.conftest import ROOT
from tests.runner.fake_target import FakeTarget

EXPERIMENT = """\
import missing_module
def train(output_dir='.', lr: float = 0.1, steps: int = 3): ...
"""


@pytest.fixture
def mine(checkout: Path) -> Path:
    path = checkout / "mine.py"
    path.write_text(EXPERIMENT)
    return path


class TestRun:
    def test_parameters_with_and_without_param(
        self, mine: Path, type_: Callable[[str], Result], fake: FakeTarget
    ) -> None:
        result = type_(
            "runner host run mine.py lr=1e-3 --param steps=7 --name first --tracker mlflow"
        )
        assert result.exit_code == 0, result.stderr
        (plan,) = fake.plans
        assert plan.process.command[1:] == (
            *("-m", "experiment.run", "mine.py", "lr=1e-3", "steps=7"),
            *("--name", "first"),
        )
        assert plan.writes_run
        assert "train(lr=0.001, steps=7) of mine.py" in result.stderr
        launch = json.loads(dict(plan.process.environment)["RUN_LAUNCH"])
        experiment = {"file": str(mine), "words": ["lr=1e-3", "steps=7"]}
        assert launch["experiment"] == {**experiment, "trackers": {"mlflow": "gpt-runner"}}

    def test_file_outside_the_checkout_brings_its_folder(
        self, checkout: Path, type_: Callable[[str], Result], fake: FakeTarget
    ) -> None:
        folder = checkout.parent / "elsewhere"
        folder.mkdir()
        (folder / "mine.py").write_text(EXPERIMENT)
        fake.has = {"container_path": "/job/elsewhere"}
        assert type_("runner host run ../elsewhere/mine.py").exit_code == 0
        (plan,) = fake.plans
        assert "/job/elsewhere/mine.py" in plan.process.command
        assert plan.folder is not None
        assert plan.folder.host_path == str(folder)

    @pytest.mark.parametrize(
        ("line", "status", "message"),
        [
            ("run mine.py lrr=1", 2, "mine.py has no parameter 'lrr'; did you mean 'lr'?"),
            ("run mine.py --param steps=two", 2, "steps: expected an integer, got 'two'"),
            ("run mien.py", 2, "did you mean 'mine.py'?"),
            ("run", 2, "`run` needs a file"),
            ("run mine.py other", 2, "unexpected 'other'"),
            ("run mine.py --persist out=data", 2, "--persist is an option of command, not of run"),
            ("run mine.py --device mps", 2, "the experiment chooses its device"),
            ("mine.py", 2, "mine.py is an experiment, not a recipe; use `runner host run mine.py`"),
            ("run plain.py", 2, "no function train at the top level"),
        ],
    )
    def test_error_starts_no_job(
        self,
        mine: Path,
        type_: Callable[[str], Result],
        fake: FakeTarget,
        line: str,
        status: int,
        message: str,
    ) -> None:
        mine.with_name("plain.py").write_text("print('no experiment')\n")
        result = type_(f"runner host {line}")
        assert result.exit_code == status
        assert message in result.stderr
        assert fake.did == []

    def test_finished_run_is_shown_and_other_parameters_are_refused(
        self,
        mine: Path,
        type_: Callable[[str], Result],
        fake: FakeTarget,
        make_run: Callable[..., Path],
    ) -> None:
        arguments = {"lr": 0.1, "steps": 3}
        make_run(
            "mine",
            job="experiment",
            arguments=arguments,
            result={"loss": 0.5},
            file={"path": "mine.py"},
        )
        result = type_("runner host run mine.py --json")
        assert result.exit_code == 0
        assert json.loads(result.stdout)["result"] == {"loss": 0.5}
        assert "already finished with these parameters: loss=0.5" in result.stderr
        again = type_("runner host run mine.py lr=0.1").stderr
        assert "mine.py lr=0.1 --name mine-2`" in again
        result = type_("runner host run mine.py lr=0.2")
        assert result.exit_code == 2
        assert "lr: 0.1 → 0.2" in result.stderr
        make_run("warm")
        assert (
            "run 'warm' exists with job train;"
            in type_("runner host run mine.py --name warm").stderr
        )
        assert fake.did == []

    def test_edited_file_is_reported_with_the_old_result(
        self,
        mine: Path,
        type_: Callable[[str], Result],
        fake: FakeTarget,
        make_run: Callable[..., Path],
    ) -> None:
        ran = {"path": "mine.py", "sha256": hashlib.sha256(EXPERIMENT.encode()).hexdigest()}
        make_run("mine", job="experiment", arguments={"lr": 0.1, "steps": 3}, file=ran)
        assert "has changed" not in type_("runner host run mine.py").stderr
        mine.write_text(EXPERIMENT + "# other\n")
        result = type_("runner host run mine.py")
        assert "mine.py has changed since; the result is that of the earlier file" in result.stderr
        assert "--name mine-2" in result.stderr
        assert fake.did == []


class TestNew:
    def test_new_writes_an_experiment_and_overwrites_nothing(
        self, checkout: Path, type_: Callable[[str], Result]
    ) -> None:
        result = type_("runner new experiment my_gpt")
        path = checkout / "my_gpt.py"
        assert result.stdout == f"{path}\n"
        assert "runner host run my_gpt.py" in path.read_text()
        assert type_("runner host run my_gpt.py --dry-run").exit_code == 0
        path.write_text("mine now\n")
        result = type_("runner new experiment my_gpt")
        assert result.exit_code == 1
        assert "exists; choose a different name" in result.stderr
        assert path.read_text() == "mine now\n"

    @pytest.mark.parametrize("name", ["torch", "experiment", "3x", "a-b", "class"])
    def test_reserved_name_is_refused(
        self, type_: Callable[[str], Result], name: str, cli: CliContext
    ) -> None:
        assert type_(f"runner new experiment {name}").exit_code == 2
        assert not list(cli.cwd.glob("*.py"))

    @pytest.mark.parametrize("line", ["new experiment my_gpt", "init"])
    def test_a_full_disk_leaves_no_half_file(
        self, type_, cli, tmp_path, checkout, monkeypatch, line
    ) -> None:
        (checkout / ".env.example").write_text("A=1\n")
        (tmp_path / "mine").mkdir()
        monkeypatch.setattr(setup, "find_checkout", lambda cwd: checkout)
        cli.cwd = tmp_path / "mine"

        def fail(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        result = type_(f"runner {line}")
        assert result.exit_code == 1
        assert f"error: {cli.cwd}/" in result.stderr
        assert [path for path in cli.cwd.rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_new_experiment_trains_and_resumes_exactly(
    checkout: Path, type_: Callable[[str], Result], spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    type_("runner new experiment my_gpt")
    small = ("steps=60", "n_embd=32", "block_size=32", "batch_size=4")
    whole = spawn("host", "run", "my_gpt.py", *small, "--name", "whole", OMP_NUM_THREADS="1")
    _, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err
    halves = spawn("host", "run", "my_gpt.py", *small, "--name", "halves", OMP_NUM_THREADS="1")
    metrics = checkout / "volumes" / "checkpoints" / "halves" / "metrics.jsonl"
    while not (metrics.exists() and '"step": 5,' in metrics.read_text()):
        assert halves.poll() is None, halves.communicate()[1]
    halves.terminate()
    halves.communicate(timeout=60)
    assert halves.returncode == 101
    again = spawn("resume", "halves", OMP_NUM_THREADS="1")
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    folders = [checkout / "volumes" / "checkpoints" / name for name in ("whole", "halves")]
    resumed, uninterrupted = (
        (f / "step_00000060" / "model.safetensors").read_bytes() for f in folders
    )
    assert resumed == uninterrupted
    steps = [
        row["step"]
        for row in map(json.loads, metrics.read_text().splitlines())
        if row["kind"] == "train"
    ]
    assert steps == list(range(1, 61))


def test_runner_imports_no_torch(mine: Path, checkout: Path) -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom runner.cli import main\n"
        "for line in ('host run mine.py --dry-run', 'sweep --help', 'new --help'):\n"
        "    result = CliRunner().invoke(main, line.split())\n"
        "    assert result.exit_code == 0, result.output\n"
        "print([name for name in ('torch', 'modal', 'matplotlib') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
    )
    assert done.stdout.decode().strip() == "[]", done.stderr.decode()
