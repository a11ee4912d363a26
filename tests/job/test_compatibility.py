"""A run's folder stays with the kind of job that made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from job.run_record import NoSuchRun, RunRecord, find_run, without_checkpoint
from job.run_session import RunRefused, RunSession, refuse_changes


@pytest.mark.parametrize("theirs", ["command", "experiment"])
def test_the_trainer_does_not_take_another_jobs_finished_run_for_its_own(
    tmp_path: Path, theirs: str
) -> None:
    RunRecord("r", job=theirs, status="finished").write(tmp_path)
    with pytest.raises(RunRefused, match=f"run 'r' is an? {theirs} already"):
        refuse_changes(tmp_path, None)  # type: ignore[arg-type]  # it is not looked at


def test_no_session_is_opened_in_another_jobs_folder_and_nothing_is_written(tmp_path: Path) -> None:
    RunRecord("r", status="finished").write(tmp_path)
    for job in ("command", "experiment"):
        with pytest.raises(RunRefused, match="is a train already"):
            RunSession(tmp_path, None, job, [])
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_the_newest_run_to_read_is_one_that_was_trained(tmp_path: Path) -> None:
    RunRecord("c", job="command", created=3.0).write(tmp_path / "c")
    with pytest.raises(NoSuchRun, match=r"no trained run in .*; train one"):
        find_run(None, tmp_path)
    for created, name in ((1.0, "a"), (2.0, "b")):
        RunRecord(name, created=created).write(tmp_path / name)
        (tmp_path / name / "recipe.yaml").write_text("")
    assert find_run(None, tmp_path).name == "b"
    assert find_run("a", tmp_path).name == "a"
    with pytest.raises(NoSuchRun, match=r"no run d in .*; runs: c, b, a"):
        find_run("d", tmp_path)
    with pytest.raises(NoSuchRun, match=r"run c is a run of command, not of train"):
        find_run("c", tmp_path)
    (tmp_path / "a" / "recipe.yaml").unlink()
    with pytest.raises(
        NoSuchRun,
        match=r"run a has no recipe\.yaml in .*a; restore .* runner host train --name a-2",
    ):
        find_run("a", tmp_path)


def test_a_finished_run_without_checkpoints_had_some(tmp_path: Path) -> None:
    RunRecord("a", status="unfinished").write(tmp_path / "a")
    assert "has no checkpoint yet" in str(without_checkpoint(tmp_path / "a"))
    RunRecord("a", status="finished").write(tmp_path / "a")
    assert "were deleted; to train it again: runner host" in str(without_checkpoint(tmp_path / "a"))
