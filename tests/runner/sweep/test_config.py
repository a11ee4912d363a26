"""A mistake in a sweep's file is named with its line, before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from job.recipe import load
from job.run_record import RunRecord
from runner.doctor.parity import SETTINGS, STEPS
from runner.request import Request
from runner.sweep.config import Space, SweepConfig
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
def train(output_dir=".", x: int = 0, mode: Literal["a", "b"] = "a", steps: int = 9) -> dict: ...
"""


@pytest.mark.parametrize(
    ("text", "old", "new", "said"),
    [
        (RECIPE, "grid:", "gird:", ":5: space.gird: unknown key; did you mean 'space.grid'?"),
        (RECIPE, "lr:", "lrr:", ":6: unknown key 'lrr'; did you mean 'train.lr'?"),
        (
            RECIPE,
            "1e-3,",
            "fast,",
            ":6: argument 'lr=fast': train.lr: expected a number, got 'fast'",
        ),
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
            ":1: there is no recipe quickstat; did you mean 'quickstart'?",
        ),
        (RECIPE, "val_loss", "val_los", ":7: metric: a recipe's run has val_loss"),
        (RECIPE, "metric: val_loss", "goal: min", "metric: is missing; the sweep must give it"),
        (RECIPE, "  grid:", "  trials: 3\n  grid:", ":5: trials says how many random ones to draw"),
        (RANDOM, "loguniform", "lognormal", "space.random.lr.lognormal: unknown key; did you mean"),
        (
            RANDOM,
            "[1e-4, 1e-2]",
            "[1e-2, 1e-4]",
            ":4: loguniform is [from, to]: 0.01 is above 0.0001",
        ),
        (RANDOM, "[1e-4, 1e-2]", "[0, 1]", ":4: loguniform begins above 0"),
        (RANDOM, "[1e-4, 1e-2]", "[1]", ":4: loguniform is [from, to], two numbers"),
        (EXPERIMENT, "{x: 1}", "{xx: 1}", ":4: mine.py has no parameter 'xx'; did you mean 'x'?"),
        (EXPERIMENT, "mode: b", "mode: c", ":5: mode is 'a' or 'b', not 'c'"),
        (EXPERIMENT, "{x: 1}", "{x: [1]}", ":4: space.list.0.x: [1] is no single value"),
        (EXPERIMENT, "mine.py", "mien.py", "did you mean 'mine.py'?"),
    ],
)
def test_what_is_wrong_and_where(
    checkout: Path,
    type_: Callable[[str], Result],
    fake: FakeTarget,
    text: str,
    old: str,
    new: str,
    said: str,
) -> None:
    (checkout / "mine.py").write_text(MINE)
    assert old in text
    (checkout / "s.yaml").write_text(text.replace(old, new))
    result = type_("runner sweep s.yaml")
    assert result.exit_code == 2, result.stderr
    assert said in result.stderr
    assert fake.did == []


def test_the_plan_shows_every_trial_and_starts_none(
    checkout: Path, type_: Callable[[str], Result], fake: FakeTarget
) -> None:
    (checkout / "s.yaml").write_text(RECIPE)
    result = type_("runner sweep s.yaml --dry-run")
    assert result.exit_code == 0, result.stderr
    for words in (
        "2 trials of recipe quickstart on host",
        "s-001  0.001",
        "s-002  0.003",
        "s-smoke",
    ):
        assert words in result.stderr
    assert result.stdout == ""
    assert fake.did == []
    assert not (checkout / "volumes").exists()


def test_money_belongs_to_the_cloud(checkout: Path, type_: Callable[[str], Result]) -> None:
    (checkout / "s.yaml").write_text(RECIPE)
    result = type_("runner sweep s.yaml --budget 5")
    assert result.exit_code == 2
    assert "--budget belongs to the cloud" in result.stderr


def test_a_sweep_is_no_recipe_and_no_recipe_a_sweep(
    checkout: Path, type_: Callable[[str], Result]
) -> None:
    (checkout / "configs" / "s.yaml").write_text(RECIPE)
    assert "type: runner sweep configs/s.yaml" in type_("runner host configs/s.yaml").stderr
    assert "is a recipe, not a sweep" in type_("runner sweep configs/warm.yaml").stderr
    assert type_("runner doctor").stdout.count("s.yaml") == 0


SCHEDULES = (
    "  batch_schedule: [[50, 4096]]\n  window_schedule: [[0, 64], [60, 128]]\n  decay_steps: 90\n"
)
WINDOWS = "model:\n  variant: modern\n  attention_pattern: SL\n  window_size: 128\n  n_layer: 2\n"


def test_a_short_run_of_a_recipe_with_schedules_can_be(
    checkout: Path, type_: Callable[[str], Result]
) -> None:
    recipe = checkout / "configs" / "warm.yaml"
    recipe.write_text(WINDOWS + recipe.read_text() + SCHEDULES)
    config = SweepConfig(recipe="warm", space=Space(grid={"lr": [1e-3]}), metric="val_loss")
    subject = find_objective(config, checkout / "s.yaml", checkout)
    values = subject.smoke({"lr": 1e-3})
    assert values is not None
    short = subject.request("s-smoke", values, Request(run="")).settings
    assert short is not None
    assert (short.train.max_steps, short.train.lr) == (3, 1e-3)
    assert load(recipe, SETTINGS).train.max_steps == STEPS


@pytest.mark.parametrize(
    ("asked", "noted", "is_it"),
    [
        ("texts/a", "init_from=texts/a", True),
        ("{here}/texts/a", "init_from=texts/a", True),
        ("{here}/volumes/checkpoints/warm", "init_from=/vol/checkpoints/warm", True),
        ("{here}/texts/a", "init_from=/vol/given{here}/texts/a", True),
        ("{here}/texts/a", "init_from=texts/b", False),
        ("{here}/texts/a", "init_from=a2", False),
        ("{here}/texts/a", "lr=1", False),
        ("gpt2", "init_from=gpt2", True),
        ("gpt2", "init_from=gpt2-medium", False),
    ],
)
def test_a_trial_is_known_again_wherever_its_file_was_seen(
    tmp_path: Path, asked: str, noted: str, is_it: bool
) -> None:
    config = SweepConfig(recipe="warm", space=Space(grid={"init_from": ["a"]}), metric="val_loss")
    words = ("seed=1", f"init_from={asked.format(here=tmp_path)}")
    record = RunRecord("s-001", overrides=[noted.format(here=tmp_path)])
    request = Request(run="s-001", overrides=words)
    assert Objective(tmp_path, config).is_trial(record, request, {"init_from": asked}) is is_it
