"""A sweep of an edited recipe: results of different settings are never mixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from job.run_record import RunRecord, RunStatus, read_record
from runner.plan import Plan
from runner.sweep.config import Space, SweepConfig
from runner.sweep.objective import find_objective
from runner.target import LaunchHandle, RunInfo
from tests.runner.fake_target import FakeTarget

SWEEP = """\
recipe: warm
space:
  grid: {lr: [1e-3, 2e-3]}
metric: val_loss
"""


@pytest.fixture
def finishing(checkout: Path, fake: FakeTarget, monkeypatch: pytest.MonkeyPatch) -> FakeTarget:
    """Make every run of the fake target finish immediately, with the recipe of the plan."""
    from job.recipe import load

    start = fake.start

    def start_and_finish(plan: Plan) -> LaunchHandle:
        overrides = [word for word in plan.overrides if "=" in word]
        recipe = load(checkout / "configs" / "warm.yaml", overrides)
        folder = checkout / "volumes" / "checkpoints" / plan.run
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(recipe.to_yaml())
        steps = recipe.train.max_steps
        record = RunRecord(
            plan.run, step=steps, status=RunStatus.FINISHED, overrides=overrides, val_loss=1.0
        )
        record.write(folder)
        fake.states.append(RunInfo(plan.run, "train", "host", RunStatus.FINISHED, step=steps))
        return start(plan)

    monkeypatch.setattr(fake, "start", start_and_finish)
    return fake


def edit(checkout: Path, line: str) -> None:
    recipe = checkout / "configs" / "warm.yaml"
    recipe.write_text(recipe.read_text() + f"  {line}\n")


@pytest.fixture
def finished(checkout: Path, type_: Callable[[str], Result], finishing: FakeTarget) -> FakeTarget:
    (checkout / "s.yaml").write_text(SWEEP)
    result = type_("runner sweep s.yaml --no-smoke")
    assert result.exit_code == 0, result.stderr
    assert finishing.did == ["start s-001", "start s-002"]
    return finishing


@pytest.mark.parametrize("line", ["weight_decay: 0.5", "eval_tokens: 64", "seed: 9"])
def test_an_edited_recipe_is_refused(
    checkout: Path, type_: Callable[[str], Result], finished: FakeTarget, line: str
) -> None:
    edit(checkout, line)
    result = type_("runner sweep s.yaml --no-smoke")
    assert result.exit_code == 2
    key, _, value = line.partition(": ")
    assert f"train.{key}: " in result.stderr
    assert f" → {value}" in result.stderr
    assert "--name NEW-NAME" in result.stderr
    assert type_("runner sweep s.yaml --no-smoke --name t").exit_code == 0
    assert finished.did[2:] == ["start t-001", "start t-002"]


def test_an_unchanged_recipe_resumes(
    checkout: Path, type_: Callable[[str], Result], finished: FakeTarget
) -> None:
    edit(checkout, "log_every: 3")  # does not change the results
    result = type_("runner sweep s.yaml --no-smoke")
    assert result.exit_code == 0, result.stderr
    assert finished.did == ["start s-001", "start s-002"]


def test_runs_of_an_edited_recipe_are_not_used_even_without_the_record(
    checkout: Path, type_: Callable[[str], Result], finished: FakeTarget
) -> None:
    edit(checkout, "weight_decay: 0.5")
    (checkout / "volumes" / "checkpoints" / "s" / "sweep.json").unlink()
    result = type_("runner sweep s.yaml --no-smoke")
    assert result.exit_code == 100
    assert "other settings; rename the sweep with --name NEW-NAME" in result.stderr


def test_a_dataset_that_changed_between_trials_is_reported(
    checkout: Path, type_: Callable[[str], Result], finished: FakeTarget
) -> None:
    assert "the dataset changed" not in type_("runner sweep s.yaml --no-smoke").stderr
    folder = checkout / "volumes" / "checkpoints"
    (folder / "s" / "sweep.json").unlink()
    for run, fingerprint in (("s-001", "aa"), ("s-002", "bb")):
        record = read_record(folder / run)
        assert record is not None
        record.dataset = {"source": "text.txt", "fingerprint": fingerprint}
        record.write(folder / run)
    result = type_("runner sweep s.yaml --no-smoke")
    assert result.exit_code == 0, result.stderr
    assert "the dataset changed during the sweep: s-001 and s-002 used different" in result.stderr


def test_every_trial_logs_to_the_trackers_of_the_sweep(
    checkout: Path, type_: Callable[[str], Result], finishing: FakeTarget
) -> None:
    (checkout / "s.yaml").write_text(SWEEP)
    assert type_("runner sweep s.yaml --no-smoke --tracker wandb=mine").exit_code == 0
    for run in ("s-001", "s-002"):
        record = read_record(checkout / "volumes" / "checkpoints" / run)
        assert record is not None
        assert "train.wandb_project=mine" in record.overrides
    assert type_("runner sweep s.yaml --no-smoke").exit_code == 0  # without it, the same trials
    (checkout / "mine.py").write_text(
        "def train(output_dir='.', x: float = 1.0):\n    return {'score': x}\n"
    )
    config = SweepConfig(experiment="mine.py", space=Space(grid={"x": [1.0]}), metric="score")
    objective = find_objective(config, checkout / "e.yaml", checkout)
    tracked = replace(objective, trackers=(("mlflow", "mine"),))
    assert tracked.request("e-001", {"x": 1.0}, {}).trackers == {"mlflow": "mine"}
    (checkout / "c.yaml").write_text(SWEEP.replace("recipe: warm", 'command: "true --lr={lr}"'))
    refused = type_("runner sweep c.yaml --tracker mlflow --dry-run")
    assert refused.exit_code == 2
    assert "--tracker needs a recipe or an experiment" in refused.stderr


def test_a_sweep_and_a_run_have_different_names(
    checkout: Path, type_: Callable[[str], Result], finished: FakeTarget
) -> None:
    for line, kind in (("sweep s.yaml --name s-001", "run"), ("host warm --name s", "sweep")):
        refused = type_(f"runner {line} --dry-run")
        assert refused.exit_code == 2
        assert f"is the name of a {kind}; give the " in refused.stderr
