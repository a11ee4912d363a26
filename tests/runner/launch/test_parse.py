"""The arguments [JOB] [RECIPE] [key=value ...] in any order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import pytest

from runner.commands.targets import target_command
from runner.errors import RunnerError
from runner.launch.parse import classify_args

RECIPES = ("quickstart", "shakespeare_char")


def classify(words: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    return classify_args(words, RECIPES, lambda word: f"{word} is a run" if word == "mine" else "")


def test_no_arguments_select_the_default_recipe() -> None:
    assert target_command("host").split_job([]) == (None, [])
    assert classify([]) == (None, ())


def test_the_order_does_not_matter() -> None:
    for words in permutations(["prepare", "shakespeare_char", "lr=1e-3"]):
        job, rest = target_command("host").split_job(words)
        assert job == "prepare"
        assert classify(rest) == ("shakespeare_char", ("lr=1e-3",))


@pytest.mark.parametrize(
    ("args", "job", "rest"),
    [
        (["--gpu", "2", "sample"], "sample", ["--gpu", "2"]),
        (["--name", "train", "sample"], "sample", ["--name", "train"]),  # a value is not a job
        (["--json", "sample", "--name=x"], "sample", ["--json", "--name=x"]),
        (["pipeline", "p.yaml", "train"], "pipeline", ["p.yaml", "train"]),
        (
            ["--dir", "x", "--", "python", "sample"],
            "command",
            ["--dir", "x", "--", "python", "sample"],
        ),
        (["command", "--", "ls"], "command", ["--", "ls"]),
        (["bench", "roofline"], "roofline", []),
        (["bench"], None, ["bench"]),
    ],
)
def test_the_job_is_the_first_positional_argument_that_names_one(
    args: list[str], job: str | None, rest: list[str]
) -> None:
    assert target_command("host").split_job(args) == (job, rest)


def test_overrides_keep_their_order() -> None:
    assert classify(["b=1", "a=2", "b=3"])[1] == ("b=1", "a=2", "b=3")


def test_path_is_a_recipe_even_if_missing() -> None:
    assert classify(["my/own.yaml"])[0] == "my/own.yaml"
    assert classify(["own.yml"])[0] == "own.yml"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "'trian' is not a job or a recipe; did you mean 'train'?"),
        (
            ["shakespear"],
            "'shakespear' is not a job or a recipe; did you mean 'shakespeare_char'?",
        ),
        (["1e-3"], "an override has the form key=value"),
        (["train.lr"], "'train.lr' is a setting of the recipe; give it a value: train.lr=VALUE"),
        (["lr"], "give it a value: lr=VALUE"),
        (["env", "FOO=1"], "write a program after --: -- env ..."),
        (["lr", "=", "1e-3"], "'lr = 1e-3' has spaces around the =; write lr=1e-3"),
        (["lr", "=1e-3"], "write lr=1e-3"),
        (["lr=", "1e-3"], "write lr=1e-3"),
        (["quickstart", "sample"], "'sample' is a second job"),
        (["quickstart", "shakespeare_char"], "two recipes"),
        (["mine"], "mine is a run"),
        (["x.py"], "use `runner host run x.py`"),
    ],
)
def test_unknown_word_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(RunnerError) as caught:
        classify(words)
    assert message in caught.value.message
    assert caught.value.exit_code == 2
