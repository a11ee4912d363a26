"""--choices on the runner's line: a file of the user's, wherever the job runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runner.errors import RunnerError
from runner.jobs import JOBS
from runner.launch.parse import _check_options
from runner.request import LaunchArguments
from tests.runner.planning.test_plan import HERE, INSIDE, plan


def test_the_file_is_handed_on_and_mounted_where_the_job_is_contained() -> None:
    request = {"job": JOBS["evaluate"], "recipe": None, "choices": "/home/me/hellaswag.jsonl"}
    here = plan(replace(HERE, step=7), **request)
    assert here.command[-2:] == ("--choices", "/home/me/hellaswag.jsonl")
    contained = plan(replace(INSIDE, step=7), **request)
    assert contained.command[-2:] == ("--choices", "/home/me/hellaswag.jsonl")
    (given,) = (volume for volume in contained.volumes if volume.name == "given")
    assert (given.here, given.writable) == ("/home/me/hellaswag.jsonl", False)


def test_a_file_that_is_not_there_is_a_mistake_before_anything_starts(
    type_, make_run, fake, checkout
) -> None:
    make_run("warm", step=50)
    result = type_("runner host evaluate --name warm --choices no.jsonl")
    assert (result.exit_code, fake.did) == (2, [])
    assert result.stderr.startswith("error: --choices no.jsonl: there is no such file")
    pushed = type_("runner host evaluate --name warm --choices /vol/data/hellaswag.jsonl")
    assert pushed.exit_code == 0, pushed.stderr
    (checkout / "no.jsonl").touch()
    assert type_("runner host evaluate --name warm --choices no.jsonl").exit_code == 0


def test_it_belongs_to_evaluate() -> None:
    with pytest.raises(RunnerError, match="belongs to evaluate, not to train"):
        _check_options(LaunchArguments(choices="x.jsonl"), JOBS["train"])
