"""A resumed run has the resources of its last launch, or new ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from runner.errors import RunnerError
from runner.launch.resume import previous_resources
from runner.request import TargetOptions
from runner.runs.store import launch_json, parse_launch
from runner.target import LaunchHandle
from tests.runner.fake_target import FakeTarget

LAUNCH = LaunchHandle("r", "host", "train", "1", 1.0, gpus=2)


@pytest.mark.parametrize("field", ["device", "gpus", "id", "started", "identity", "target"])
def test_damaged_launch_record_does_not_count_as_unlimited(tmp_path: Path, field: str) -> None:
    target = FakeTarget(tmp_path)
    folder = target.volumes.run("r")
    folder.mkdir(parents=True)
    text = launch_json(LAUNCH)
    assert parse_launch(text) == LAUNCH
    (folder / "launch.json").write_text(launch_json(replace(LAUNCH, **{field: ["x"]})))
    with pytest.raises(RunnerError, match=r"r/launch.json is damaged, .* remove the file"):
        previous_resources(target, "r", None, None, TargetOptions())
    assert previous_resources(target, "r", 3, None, TargetOptions()).gpus == 3
