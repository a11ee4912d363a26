"""Without a Modal token, plans still work, and commands that need Modal name the token."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from runner.cli import main
from runner.console import CliContext
from runner.targets.modal.client import NEW_TOKEN
from tests.runner.targets.modal.conftest import make_checkout

Type = Callable[[str], Result]

PIPELINE = """\
name: pipe
dir: work
persist: {data: data}
stages:
  prepare:
    command: python prepare.py
    outputs: [data/train.bin]
  train:
    command: python train.py
    gpu: L4
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "checkout")


@pytest.fixture
def type_(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Type:
    """Return a function that runs a command without a token; network access fails the test."""

    def no_network(*words: object) -> None:
        raise AssertionError("the network was accessed")

    monkeypatch.setattr("runner.targets.modal.client.socket.getaddrinfo", no_network)

    def run(line: str) -> Result:
        environ = {"PATH": os.environ["PATH"], "HOME": str(checkout.parent)}
        cli = CliContext(environ=environ, cwd=checkout, terminal=False)
        return CliRunner().invoke(main, line.split(), obj=cli)

    return run


@pytest.mark.parametrize(
    "words",
    ["tiny", "sample --name cl", "sample", "evaluate --name cl", "pipeline p.yaml --dir work"],
)
def test_plan_reports_the_missing_token(words: str, type_: Type, checkout: Path) -> None:
    (checkout / "p.yaml").write_text(PIPELINE)
    (checkout / "work").mkdir()
    for script in ("prepare.py", "train.py"):
        (checkout / "work" / script).touch()
    planned = type_(f"cloud {words} --dry-run")
    assert planned.exit_code == 0, planned.stderr
    assert "no Modal token, so the runs and data on Modal are unknown" in " ".join(
        planned.stderr.split()
    )


@pytest.mark.parametrize(
    "line", ["cloud sample --name cl -y", "cloud sample --name cl", "resume cl --target cloud"]
)
def test_launch_is_refused(line: str, type_: Type, checkout: Path) -> None:
    run = checkout / "volumes" / "checkpoints" / "cl"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"name": "cl", "status": "finished"}')
    refused = type_(line)
    assert refused.exit_code == 1
    assert f"error: this machine has no Modal token; create one: {NEW_TOKEN}" in refused.stderr


@pytest.mark.parametrize(
    "line",
    [
        *("push data texts", "pull checkpoints cl", "ls data", "rm data texts -r"),
        "cache ls --target cloud",
    ],
)
def test_transfer_names_the_token(line: str, type_: Type) -> None:
    refused = type_(line)
    assert refused.exit_code == 1
    assert refused.stderr == f"error: this machine has no Modal token; create one: {NEW_TOKEN}\n"


def test_missing_path_is_reported_before_the_token(type_: Type) -> None:
    refused = type_("push data /nope")
    assert refused.exit_code == 102
    assert "/nope does not exist" in refused.stderr
