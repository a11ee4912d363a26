"""A run's folder is only for the kind of job that created it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiment.run import main
from job.compatibility import does_not_fit
from job.exit_status import ExitStatus, RecipeError
from job.paths import CONFIGS, VolumePaths
from job.recipe import ModelConfig, load
from job.run_record import NoSuchRun, RunRecord, find_run, invalid_run_name, no_checkpoint_error
from job.run_session import (
    RunRefused,
    RunSession,
    refuse_changes,
    refuse_lost_records,
    run_folder,
)
from runner.errors import RunnerError
from runner.launch.parse import check_run_name


@pytest.mark.parametrize("job", ["command", "experiment"])
def test_trainer_refuses_the_finished_run_of_a_different_job(tmp_path: Path, job: str) -> None:
    RunRecord("r", job=job, status="finished").write(tmp_path)
    with pytest.raises(RunRefused, match=f"run 'r' exists with job {job};"):
        refuse_changes(tmp_path, None)  # type: ignore[arg-type]  # unused


def test_session_in_the_folder_of_a_different_job_is_refused_and_writes_nothing(
    tmp_path: Path,
) -> None:
    RunRecord("r", status="finished").write(tmp_path)
    for job in ("command", "experiment"):
        with pytest.raises(RunRefused, match="exists with job train;"):
            RunSession(tmp_path, None, job, [])
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": 1}', "[" * 100_000])
def test_damaged_record_is_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    for job in ("command", "experiment"):
        with pytest.raises(RunRefused, match=r"run\.json is damaged.*--name NEW-NAME"):
            RunSession(tmp_path, None, job, [])
    assert (tmp_path / "run.json").read_text() == content


def test_lost_records_are_named(tmp_path: Path) -> None:
    (tmp_path / "step_00000010").mkdir()
    (tmp_path / "step_00000010" / "manifest.json").touch()
    with pytest.raises(RunRefused, match=r"recipe\.yaml and run\.json in .* are .* the files"):
        refuse_lost_records(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(RunRefused, match=r"but run\.json in .* is missing .* the file, or"):
        refuse_lost_records(tmp_path)


@pytest.mark.parametrize("name", ["-a", "a b", "../a", "", "a" * 101, "a\n"])
def test_one_rule_for_the_names_of_runs(tmp_path: Path, name: str) -> None:
    recipe = load(CONFIGS / "quickstart.yaml")
    experiment = tmp_path / "mine.py"
    experiment.write_text("def train(): pass\n")
    said = re.escape(invalid_run_name(name))
    with pytest.raises(RunnerError, match=said):
        check_run_name(name)
    if name:  # else the recipe's or the file's
        with pytest.raises(RecipeError, match=said):
            run_folder(recipe, name, VolumePaths.under(tmp_path))
        assert main([str(experiment), f"--name={name}"]) == ExitStatus.USAGE


def test_newest_run_is_a_trained_one(tmp_path: Path) -> None:
    RunRecord("c", job="command", created=3.0).write(tmp_path / "c")
    with pytest.raises(NoSuchRun, match=r"no trained run in .*; train one"):
        find_run(None, tmp_path)
    for created, name in ((1.0, "a"), (2.0, "b")):
        RunRecord(name, created=created).write(tmp_path / name)
        (tmp_path / name / "recipe.yaml").write_text("")
    assert find_run(None, tmp_path).name == "b"
    assert find_run("a", tmp_path).name == "a"
    with pytest.raises(NoSuchRun, match=r"no run 'd' in .*; runs: c, b, a"):
        find_run("d", tmp_path)
    with pytest.raises(NoSuchRun, match=r"run 'c' has job command and is not a training run"):
        find_run("c", tmp_path)
    (tmp_path / "a" / "recipe.yaml").unlink()
    with pytest.raises(
        NoSuchRun,
        match=r"run 'a' has no recipe\.yaml in .*a; restore .* runner host train --name a-2",
    ):
        find_run("a", tmp_path)


def test_missing_checkpoints_of_a_finished_run_were_deleted(tmp_path: Path) -> None:
    RunRecord("a", status="unfinished").write(tmp_path / "a")
    assert "has no checkpoint yet" in str(no_checkpoint_error(tmp_path / "a"))
    RunRecord("a", status="finished").write(tmp_path / "a")
    assert "were deleted; to train it again: runner host" in str(
        no_checkpoint_error(tmp_path / "a")
    )
    (tmp_path / "a" / "step_00000001").mkdir()
    assert "every checkpoint of run 'a' is damaged; restore" in str(
        no_checkpoint_error(tmp_path / "a")
    )


def test_a_smear_of_more_tokens_has_other_weights_in_the_modern_variant_only() -> None:
    before, after = ({"smear": smear} for smear in (1, 3))
    modern = (ModelConfig(variant="modern", **smear) for smear in (before, after))
    message = "run 'r' does not fit the recipe's model: model.smear is 1, not 3"
    assert does_not_fit("r", *modern) == message
    assert does_not_fit("r", *(ModelConfig(**smear) for smear in (before, after))) == ""
