"""Without a Modal token: every plan is made and says so, and what needs Modal names the token, not the network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from runner.cli import main
from runner.console import CliContext
from tests.runner.targets.modal.conftest import make_checkout

PIPELINE = """\
name: pipe
dir: work
keep: {data: data}
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
def type_(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Result]:
    """``type_("ls data")`` on a machine without a token, where a look at the network fails the test."""

    def no_network(*words: object) -> None:
        raise AssertionError("the network is asked for")

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
def test_a_plan_says_what_it_could_not_look_up(
    words: str, type_: Callable[[str], Result], checkout: Path
) -> None:
    (checkout / "p.yaml").write_text(PIPELINE)
    (checkout / "work").mkdir()
    (checkout / "work" / "prepare.py").touch()
    planned = type_(f"cloud {words} --dry-run")
    assert planned.exit_code == 0, planned.stderr
    assert "no Modal token here, so what is there was not looked up" in " ".join(
        planned.stderr.split()
    )


@pytest.mark.parametrize("line", ["cloud sample --name cl -y", "resume cl --target cloud"])
def test_nothing_is_started(line: str, type_: Callable[[str], Result], checkout: Path) -> None:
    run = checkout / "volumes" / "checkpoints" / "cl"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"name": "cl", "status": "finished"}')
    refused = type_(line)
    assert refused.exit_code == 1
    assert "error: there is no Modal token here; type: modal token new" in refused.stderr


@pytest.mark.parametrize(
    "line", ["push data texts", "pull checkpoints cl", "ls data", "rm data texts -r"]
)
def test_a_transfer_names_the_token(line: str, type_: Callable[[str], Result]) -> None:
    refused = type_(line)
    assert refused.exit_code == 1
    assert refused.stderr == "error: there is no Modal token here; type: modal token new\n"


def test_a_path_that_is_not_here_is_said_before_the_token(type_: Callable[[str], Result]) -> None:
    refused = type_("push data /nope")
    assert refused.exit_code == 102
    assert "there is no /nope here" in refused.stderr
