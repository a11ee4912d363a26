"""The file of a sweep: errors name their line before a run starts; spaces define the trials."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from job.recipe import load
from job.run_record import RunRecord
from runner.doctor.parity import SETTINGS, STEPS
from runner.request import Request
from runner.sweep.config import Distribution, Space, SweepConfig, trials
from runner.sweep.objective import Objective, find_objective
from tests.runner.fake_target import FakeTarget

RECIPE = """\
recipe: quickstart
fixed:
  eval_every: 10
space:
  grid:
    lr: [1e-3, 3e-3]
metric: val_loss
"""
RANDOM = """\
recipe: quickstart
space:
  random:
    lr: {loguniform: [1e-4, 1e-2]}
  trials: 3
metric: val_loss
"""
EXPERIMENT = """\
experiment: mine.py
space:
  list:
    - {x: 1}
    - {x: 2, mode: b}
metric: score
"""
MINE = """\
from typing import Literal
def train(output_dir=".", x: int = 0, mode: Literal["a", "b"] = "a", steps: int = 9,
          rate: float = 0.1) -> dict: ...
"""


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        (RECIPE, "grid:", "gird:", ":5: space.gird: unknown key; did you mean 'space.grid'?"),
        (RECIPE, "lr:", "lrr:", ":6: unknown key 'lrr'; did you mean 'train.lr'?"),
        (RECIPE, "1e-3,", "fast,", ":6: argument 'lr=fast': train.lr: "),
        (RECIPE, "[1e-3, 3e-3]", "[]", ":6: lr has no values"),
        (
            RECIPE,
            "eval_every: 10",
            "eval_ever: 10",
            ":3: unknown key 'eval_ever'; did you mean 'train.eval_every'?",
        ),
        (
            RECIPE,
            "quickstart",
            "quickstat",
            ":1: unknown recipe 'quickstat'; did you mean 'quickstart'?",
        ),
        (
            RECIPE,
            "val_loss",
            "val_los",
            ":7: metric: expected val_loss, best_val_loss, train_loss for a recipe, got 'val_los'",
        ),
        (RECIPE, "metric: val_loss", "goal: min", "metric: missing; the sweep must set it"),
        (RECIPE, "  grid:", "  trials: 3\n  grid:", ":5: trials is the number of random draws"),
        (RANDOM, "loguniform", "lognormal", "space.random.lr.lognormal: unknown key; did you mean"),
        (
            RANDOM,
            "[1e-4, 1e-2]",
            "[1e-2, 1e-4]",
            ":4: loguniform must be [from, to]: 0.01 is above 0.0001",
        ),
        (RANDOM, "[1e-4, 1e-2]", "[0, 1]", ":4: loguniform must begin above 0"),
        (RANDOM, "[1e-4, 1e-2]", "[1]", ":4: loguniform must be [from, to], two numbers"),
        (EXPERIMENT, "{x: 1}", "{xx: 1}", ":4: mine.py has no parameter 'xx'; did you mean 'x'?"),
        (EXPERIMENT, "mode: b", "mode: c", ":5: mode: expected 'a' or 'b', got 'c'"),
        (
            EXPERIMENT,
            "{x: 1}",
            "{x: [1]}",
            ":4: space.list.0.x: expected a number, text, true, false or null, got [1]",
        ),
        (EXPERIMENT, "mine.py", "mien.py", "did you mean 'mine.py'?"),
    ],
)
def test_an_error_names_its_line_and_the_remedy(
    checkout: Path,
    type_: Callable[[str], Result],
    fake: FakeTarget,
    text: str,
    old: str,
    new: str,
    message: str,
) -> None:
    (checkout / "mine.py").write_text(MINE)
    assert old in text
    (checkout / "s.yaml").write_text(text.replace(old, new))
    result = type_("runner sweep s.yaml")
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert fake.did == []


@pytest.mark.parametrize(
    ("text", "old", "new", "where"),
    [
        (RECIPE, "3e-3", ".nan", ":6:"),
        (RECIPE, "3e-3", "1e999", ":6:"),
        (RECIPE, "eval_every: 10", "min_lr: .inf", ":3:"),
        (RANDOM, "1e-2", ".inf", ":4:"),
        (RANDOM, "{loguniform: [1e-4, 1e-2]}", "{uniform: [.nan, 1]}", ":4:"),
        (RANDOM, "{loguniform: [1e-4, 1e-2]}", "{choice: [.nan, 1]}", ":4:"),
        (EXPERIMENT, "{x: 1}", "{rate: .nan}", ":4:"),
        (EXPERIMENT, "metric: score", "smoke: {rate: -.inf}\nmetric: score", ":6:"),
    ],
)
def test_a_value_must_be_finite(
    checkout: Path, type_: Callable[[str], Result], text: str, old: str, new: str, where: str
) -> None:
    (checkout / "mine.py").write_text(MINE)
    assert old in text
    (checkout / "s.yaml").write_text(text.replace(old, new))
    result = type_("runner sweep s.yaml --dry-run")
    assert result.exit_code == 2, result.stderr
    assert where in result.stderr
    assert "not a finite number" in result.stderr


def test_the_plan_shows_every_trial_and_starts_none(
    checkout: Path, type_: Callable[[str], Result], fake: FakeTarget
) -> None:
    (checkout / "s.yaml").write_text(RECIPE)
    result = type_("runner sweep s.yaml --dry-run")
    assert result.exit_code == 0, result.stderr
    for text in (
        "2 trials of recipe quickstart on host",
        "s-001  0.001",
        "s-002  0.003",
        "s-smoke",
    ):
        assert text in result.stderr
    assert result.stdout == ""
    assert fake.did == []
    assert not (checkout / "volumes").exists()


def test_a_budget_needs_a_target_that_bills(checkout: Path, type_: Callable[[str], Result]) -> None:
    (checkout / "s.yaml").write_text(RECIPE)
    result = type_("runner sweep s.yaml --budget 5")
    assert result.exit_code == 2
    assert (
        "--budget is for Modal, and host is free; add --target cloud, or remove --budget"
        in result.stderr
    )


def test_sweeps_and_recipes_are_not_confused(
    checkout: Path, type_: Callable[[str], Result]
) -> None:
    (checkout / "configs" / "s.yaml").write_text(RECIPE)
    assert "runner sweep configs/s.yaml" in type_("runner host configs/s.yaml").stderr
    assert "is a recipe, not a sweep" in type_("runner sweep configs/warm.yaml").stderr
    assert type_("runner doctor").stdout.count("s.yaml") == 0


SCHEDULES = (
    "  batch_schedule: [[50, 4096]]\n  window_schedule: [[0, 64], [60, 128]]\n  decay_steps: 90\n"
)
WINDOWS = "model:\n  variant: modern\n  attention_pattern: SL\n  window_size: 128\n  n_layer: 2\n"


def test_the_smoke_run_of_a_recipe_with_schedules_is_valid(
    checkout: Path, type_: Callable[[str], Result]
) -> None:
    recipe = checkout / "configs" / "warm.yaml"
    recipe.write_text(WINDOWS + recipe.read_text() + SCHEDULES)
    config = SweepConfig(recipe="warm", space=Space(grid={"lr": [1e-3]}), metric="val_loss")
    objective = find_objective(config, checkout / "s.yaml", checkout)
    values = objective.smoke({"lr": 1e-3})
    assert values is not None
    short = objective.request("s-smoke", values, {}).settings
    assert short is not None
    assert (short.train.max_steps, short.train.lr) == (3, 1e-3)
    assert load(recipe, SETTINGS).train.max_steps == STEPS


@pytest.mark.parametrize(
    ("asked", "recorded", "is_trial"),
    [
        ("texts/a", "init_from=texts/a", True),
        ("{folder}/texts/a", "init_from=texts/a", True),
        ("{folder}/volumes/checkpoints/warm", "init_from=/vol/checkpoints/warm", True),
        ("{folder}/texts/a", "init_from=/vol/given{folder}/texts/a", True),
        ("{folder}/texts/a", "init_from=texts/b", False),
        ("{folder}/texts/a", "init_from=a2", False),
        ("{folder}/texts/a", "lr=1", False),
        ("gpt2", "init_from=gpt2", True),
        ("gpt2", "init_from=gpt2-medium", False),
    ],
)
def test_trial_is_recognized_by_any_spelling_of_its_path(
    tmp_path: Path, asked: str, recorded: str, is_trial: bool
) -> None:
    config = SweepConfig(recipe="warm", space=Space(grid={"init_from": ["a"]}), metric="val_loss")
    words = ("seed=1", f"init_from={asked.format(folder=tmp_path)}")
    record = RunRecord("s-001", overrides=[recorded.format(folder=tmp_path)])
    request = Request(run="s-001", overrides=words)
    objective = Objective(tmp_path, config)
    assert objective.is_trial(record, None, request, {"init_from": asked}) is is_trial


def test_run_of_a_different_recipe_is_not_the_trial(checkout: Path) -> None:
    config = SweepConfig(recipe="warm", space=Space(grid={"lr": [1e-3]}), metric="val_loss")
    objective = find_objective(config, checkout / "s.yaml", checkout)
    request = objective.request("s-001", {"lr": 1e-3}, {})
    record = RunRecord("s-001", overrides=["lr=0.001"])
    recipe = checkout / "configs" / "warm.yaml"
    assert objective.is_trial(record, load(recipe, ["lr=1e-3"]), request, {"lr": 1e-3})
    longer = load(recipe, ["lr=1e-3", "max_steps=77"])
    assert not objective.is_trial(record, longer, request, {"lr": 1e-3})


class TestSpace:
    def test_a_grid_has_every_combination_in_the_order_of_the_file(self) -> None:
        assert trials(Space(grid={"lr": [0.1, 0.2], "n": [1, 2]})) == [
            {"lr": 0.1, "n": 1},
            {"lr": 0.1, "n": 2},
            {"lr": 0.2, "n": 1},
            {"lr": 0.2, "n": 2},
        ]

    def test_random_values_are_in_their_ranges_and_repeat_with_the_seed(self) -> None:
        space = {
            "lr": Distribution(loguniform=[1e-4, 1e-1]),
            "p": Distribution(uniform=[0.2, 0.3]),
            "n": Distribution(ints=[2, 4]),
            "v": Distribution(choice=["a", True]),
        }
        drawn = trials(Space(random=space, trials=200, seed=3))
        assert len(drawn) == 200
        assert all(1e-4 <= t["lr"] <= 1e-1 and 0.2 <= t["p"] <= 0.3 for t in drawn)
        assert {t["n"] for t in drawn} == {2, 3, 4}
        assert {t["v"] for t in drawn} == {"a", True}
        logs = [math.log10(t["lr"]) for t in drawn]
        assert -2.8 < sum(logs) / len(logs) < -2.2  # uniform in the exponent: -2.5
        assert drawn == trials(Space(random=space, trials=200, seed=3))
        assert drawn != trials(Space(random=space, trials=200, seed=4))

    def test_more_trials_or_keys_keep_the_values_of_the_first_trials(self) -> None:
        lr = {"lr": Distribution(uniform=[0, 1])}
        short, long = (trials(Space(random=lr, trials=n)) for n in (5, 9))
        assert long[:5] == short
        wider = trials(Space(random={**lr, "n": Distribution(ints=[1, 9])}, trials=5))
        assert [t["lr"] for t in wider] == [t["lr"] for t in short]

    def test_a_small_space_has_no_duplicates(self) -> None:
        drawn = trials(Space(random={"n": Distribution(ints=[1, 3])}, trials=10))
        assert sorted(t["n"] for t in drawn) == [1, 2, 3]
