"""[JOB] [RECIPE] [key=value ...], told apart by form."""

from __future__ import annotations

from itertools import permutations

import pytest

from runner.errors import RunnerError
from runner.launch.parse import ParsedArgs, classify_args

RECIPES = ("quickstart", "shakespeare_char")


def test_nothing_at_all_trains_the_default_recipe() -> None:
    assert classify_args([], RECIPES) == ParsedArgs("train", None, ())


def test_the_order_does_not_matter() -> None:
    wanted = ParsedArgs("prepare", "shakespeare_char", ("lr=1e-3",))
    for words in permutations(["prepare", "shakespeare_char", "lr=1e-3"]):
        assert classify_args(words, RECIPES) == wanted


def test_a_job_that_measures_may_be_called_a_bench() -> None:
    assert (
        classify_args(["bench", "roofline"], ["quickstart"])
        == classify_args(["roofline"], [])
        == ParsedArgs("roofline")
    )
    with pytest.raises(RunnerError, match="bench"):
        classify_args(["bench"], ["quickstart"])


def test_overrides_keep_their_order() -> None:
    assert classify_args(["b=1", "a=2", "b=3"], RECIPES).overrides == ("b=1", "a=2", "b=3")


def test_a_path_is_a_recipe_whether_it_is_there_or_not() -> None:
    assert classify_args(["my/own.yaml"], RECIPES).recipe == "my/own.yaml"
    assert classify_args(["own.yml"], RECIPES).recipe == "own.yml"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "'trian' is neither a job nor a recipe; did you mean 'train'?"),
        (
            ["shakespear"],
            "'shakespear' is neither a job nor a recipe; did you mean 'shakespeare_char'?",
        ),
        (["1e-3"], "an override is key=value"),
        (["train", "lr", "=", "1e-3"], "'lr = 1e-3': a setting is one word; write lr=1e-3"),
        (["lr", "=1e-3"], "write lr=1e-3"),
        (["lr=", "1e-3"], "write lr=1e-3"),
        (["train", "sample"], "two jobs, 'train' and 'sample'"),
        (["quickstart", "shakespeare_char"], "two recipes"),
        (["mine"], "'mine' is a run, not a job or a recipe; write --name mine"),
    ],
)
def test_a_word_that_is_none_of_them_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(RunnerError) as caught:
        classify_args(words, RECIPES, lambda: ["mine"])
    assert message in caught.value.message
    assert caught.value.exit_code == 2
