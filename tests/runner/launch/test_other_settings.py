"""Changed settings of a run are refused before it starts, unless they may change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from job.recipe import known_keys, load
from job.run_record import read_record
from job.run_session import SettingsMismatch, refuse_changes
from runner.commands.change import resume_command
from runner.console import CliContext
from runner.targets.host import HostTarget

Type = Callable[[str], Result]

MakeRun = Callable[..., Path]


@pytest.mark.parametrize("line", ["runner host warm lr=1 --name warm", "runner resume warm lr=1"])
@pytest.mark.parametrize("status", ["finished", "unfinished"])
def test_plan_refuses_changed_settings_as_the_job_does(
    line: str, status: str, type_: Type, cli: CliContext, checkout: Path, make_run: MakeRun
) -> None:
    folder = make_run("warm", step=50, status=status)
    cli.targets["host"] = HostTarget(cli, checkout, has_module=lambda name: True)
    refused = type_(line)
    assert refused.exit_code == 2
    with pytest.raises(SettingsMismatch) as of_the_job:
        refuse_changes(folder, load(folder / "recipe.yaml", ["lr=1"]))
    assert refused.stderr == f"error: {of_the_job.value}\n"
    assert "  train.lr: 0.0006 → 1.0\n" in refused.stderr
    assert "runner host RECIPE --name NEW-NAME (add init_from=warm" in refused.stderr
    record = read_record(folder)
    assert record is not None
    assert record.status == status


def test_short_key_seed_means_the_training_seed(
    type_: Type, cli: CliContext, checkout: Path, make_run: MakeRun
) -> None:
    make_run("warm", step=50, status="unfinished")
    cli.targets["host"] = HostTarget(cli, checkout, has_module=lambda name: True)
    refused = type_("runner resume warm seed=5 --dry-run")
    assert (refused.exit_code, "train.seed: 1337 → 5" in refused.stderr) == (2, True)
    assert type_("runner host sample --name warm seed=5 --dry-run").exit_code == 0


def test_setting_that_may_change_resumes(
    type_: Type, cli: CliContext, checkout: Path, make_run: MakeRun
) -> None:
    make_run("warm", step=50, status="unfinished")
    cli.targets["host"] = HostTarget(cli, checkout, has_module=lambda name: True)
    planned = type_("runner resume warm eval_every=5 --dry-run")
    assert planned.exit_code == 0, planned.stderr
    assert "resumes from step 50 of 100" in planned.stderr


def test_examples_of_resume_change_only_free_settings() -> None:
    lines = [
        line.split()
        for line in str(resume_command.help).splitlines()
        if line.strip().startswith("runner resume")
    ]
    changed = {word.partition("=")[0] for line in lines for word in line if "=" in word} - {
        "max_steps"
    }
    free = {key.rpartition(".")[2] for key, is_free in known_keys().items() if is_free}
    assert changed
    assert changed <= free


def test_max_steps_can_grow_before_the_decay(
    type_: Type, cli: CliContext, checkout: Path, make_run: MakeRun
) -> None:
    cli.targets["host"] = HostTarget(cli, checkout, has_module=lambda name: True)
    recipe = make_run("warm", step=100, status="finished") / "recipe.yaml"
    refused = type_("runner resume warm max_steps=200")
    assert refused.exit_code == 2
    assert "with schedule=constant, or before its last decay_steps" in refused.stderr
    recipe.write_text(load(recipe, ["schedule=constant"]).to_yaml())
    planned = type_("runner resume warm max_steps=200 --dry-run")
    assert planned.exit_code == 0, planned.stderr
    assert "resumes from step 100 of 200" in planned.stderr
    assert type_("runner resume warm max_steps=90 --dry-run").exit_code == 2
    recipe.write_text(load(recipe, ["schedule=linear", "decay_steps=50"]).to_yaml())
    assert type_("runner resume warm max_steps=200 --dry-run").exit_code == 2
    recipe = make_run("halfway", step=50, status="unfinished") / "recipe.yaml"
    recipe.write_text(load(recipe, ["schedule=linear", "decay_steps=50"]).to_yaml())
    assert type_("runner resume halfway max_steps=200 --dry-run").exit_code == 0
