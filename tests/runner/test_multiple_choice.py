"""--multiple-choice with a user's file, on every target."""

from __future__ import annotations

from runner.request import EvaluateRequest
from tests.runner.fake_target import change_state
from tests.runner.planning.test_plan import CONTAINER, HOST, plan


def test_the_file_is_passed_on_and_mounted_in_the_container() -> None:
    request = EvaluateRequest(run="warm", multiple_choice="/home/me/hellaswag.jsonl")
    on_host = plan(change_state(HOST, step=7), request)
    assert on_host.process.command[-2:] == ("--multiple-choice", "/home/me/hellaswag.jsonl")
    in_container = plan(change_state(CONTAINER, step=7), request)
    assert in_container.process.command[-2:] == ("--multiple-choice", "/home/me/hellaswag.jsonl")
    (given,) = (volume for volume in in_container.volumes if volume.name == "mount")
    assert (given.host_path, given.writable) == ("/home/me/hellaswag.jsonl", False)


def test_missing_file_is_refused_before_the_start(type_, make_run, fake, checkout) -> None:
    make_run("warm", step=50)
    result = type_("runner host evaluate --name warm --multiple-choice no.jsonl")
    assert (result.exit_code, fake.did) == (2, [])
    assert result.stderr.startswith("error: --multiple-choice no.jsonl: no such file")
    for name, path in (("no.jsonl", "no.jsonl"), ("/vol/data/no.jsonl", "volumes/data/no.jsonl")):
        (checkout / path).parent.mkdir(exist_ok=True)
        assert type_(f"runner host evaluate --name warm --multiple-choice {name}").exit_code == 2
        (checkout / path).touch()
        assert type_(f"runner host evaluate --name warm --multiple-choice {name}").exit_code == 0


def test_only_evaluate_has_the_option(type_) -> None:
    result = type_("runner host --multiple-choice x.jsonl")
    assert result.exit_code == 2
    assert "--multiple-choice is an option of evaluate, not of train" in result.stderr
