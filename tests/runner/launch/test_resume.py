"""A resumed run has the resources of its last launch, or new ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from job.run_record import RunStatus
from runner.errors import RunnerError
from runner.jobs import LaunchArguments
from runner.launch.resume import with_previous_resources
from runner.request import TargetOptions, UserCommand
from runner.runs.store import launch_json, parse_launch
from runner.target import LaunchHandle, RunInfo
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
        with_previous_resources(target, "r", LaunchArguments(), TargetOptions())
    three_gpus = (LaunchArguments(gpus=3), TargetOptions())
    assert with_previous_resources(target, "r", *three_gpus) == three_gpus


def test_a_command_without_a_gpu_resumes_without_one(
    type_, fake: FakeTarget, make_run, tmp_path: Path
) -> None:
    command = UserCommand(("python", "prepare.py"), tmp_path).as_record()
    (tmp_path / "prepare.py").touch()
    make_run("r", job="command", attempts=[{"started": 1.0, "launch": {"command": command}}])
    fake.states = [RunInfo("r", "command", "host", RunStatus.UNFINISHED)]
    fake.last = LaunchHandle("r", "host", "command", "1", 1.0, device="cpu")
    assert type_("runner resume r --dry-run").exit_code == 0
    assert fake.plans[0].process.device == "cpu"
