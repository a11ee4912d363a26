"""--multiple-choice on the runner's line: a file of the user's, wherever the job runs."""

from __future__ import annotations

from dataclasses import replace

from runner.jobs import JOBS
from tests.runner.planning.test_plan import HERE, INSIDE, plan


def test_the_file_is_handed_on_and_mounted_where_the_job_is_contained() -> None:
    request = {"job": JOBS["evaluate"], "recipe": None, "choices": "/home/me/hellaswag.jsonl"}
    here = plan(replace(HERE, step=7), **request)
    assert here.command[-2:] == ("--multiple-choice", "/home/me/hellaswag.jsonl")
    contained = plan(replace(INSIDE, step=7), **request)
    assert contained.command[-2:] == ("--multiple-choice", "/home/me/hellaswag.jsonl")
    (given,) = (volume for volume in contained.volumes if volume.name == "given")
    assert (given.here, given.writable) == ("/home/me/hellaswag.jsonl", False)


def test_a_file_that_is_not_there_is_a_mistake_before_anything_starts(
    type_, make_run, fake, checkout
) -> None:
    make_run("warm", step=50)
    result = type_("runner host evaluate --name warm --multiple-choice no.jsonl")
    assert (result.exit_code, fake.did) == (2, [])
    assert result.stderr.startswith("error: --multiple-choice no.jsonl: no such file")
    pushed = type_("runner host evaluate --name warm --multiple-choice /vol/data/hellaswag.jsonl")
    assert pushed.exit_code == 0, pushed.stderr
    (checkout / "no.jsonl").touch()
    assert type_("runner host evaluate --name warm --multiple-choice no.jsonl").exit_code == 0


def test_only_evaluate_has_the_option(type_) -> None:
    result = type_("runner host --multiple-choice x.jsonl")
    assert result.exit_code == 2
    assert "--multiple-choice is an option of evaluate, not of train" in result.stderr
