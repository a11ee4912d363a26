"""`runner tensorboard` downloads the curves of a run from the target that it is on."""

from __future__ import annotations

from pathlib import Path

import pytest

from job.run_record import RunStatus
from runner.console import CliContext
from runner.errors import RunnerError
from runner.target import RunInfo
from runner.transfer import mapping
from tests.runner.fake_target import FakeTarget


def test_curves_of_a_run_on_a_box_are_downloaded_from_it(
    type_, cli: CliContext, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_mapping(_: CliContext, volume: str, root: Path, target: str = "") -> None:
        raise RunnerError(f"opened {volume} on {target} for {root.name}")

    box = FakeTarget(checkout, "remote:lab")
    box.has_remote_volumes = True
    box.states = [RunInfo("warm", "train", "remote:lab", RunStatus.RUNNING, alive=True)]
    cli.targets["remote:lab"] = box
    monkeypatch.setattr(mapping, "open_mapping", open_mapping)
    result = type_("runner tensorboard warm")
    assert "error: opened checkpoints on remote:lab for tensorboard" in result.stderr
