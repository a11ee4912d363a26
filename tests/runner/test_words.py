"""[JOB] [RECIPE] [key=value ...], told apart by form."""

from __future__ import annotations

from itertools import permutations

import pytest

from runner.command_line.words import Words, sort_words
from runner.errors import RunnerError

RECIPES = ("quickstart", "shakespeare_char")


def test_nothing_at_all_trains_the_default_recipe() -> None:
    assert sort_words([], RECIPES) == Words("train", None, ())


def test_the_order_does_not_matter() -> None:
    wanted = Words("prepare", "shakespeare_char", ("lr=1e-3",))
    for words in permutations(["prepare", "shakespeare_char", "lr=1e-3"]):
        assert sort_words(words, RECIPES) == wanted


def test_a_job_that_measures_may_be_called_a_bench() -> None:
    assert (
        sort_words(["bench", "roofline"], ["quickstart"]) == sort_words(["roofline"], []) == Words("roofline")
    )
    with pytest.raises(RunnerError, match="bench"):
        sort_words(["bench"], ["quickstart"])


def test_overrides_keep_their_order() -> None:
    assert sort_words(["b=1", "a=2", "b=3"], RECIPES).overrides == ("b=1", "a=2", "b=3")


def test_a_path_is_a_recipe_whether_it_is_there_or_not() -> None:
    assert sort_words(["my/own.yaml"], RECIPES).recipe == "my/own.yaml"
    assert sort_words(["own.yml"], RECIPES).recipe == "own.yml"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "'trian' is neither a job nor a recipe; did you mean 'train'?"),
        (["shakespear"], "'shakespear' is neither a job nor a recipe; did you mean 'shakespeare_char'?"),
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
        sort_words(words, RECIPES, lambda: ["mine"])
    assert message in caught.value.message
    assert caught.value.exit_code == 2
