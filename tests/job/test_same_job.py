"""A run's folder stays with the kind of job that made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from job.runs import RunRecord
from job.session import RunRefused, Session, refuse_changes


@pytest.mark.parametrize("theirs", ["command", "experiment"])
def test_the_trainer_does_not_take_another_jobs_finished_run_for_its_own(tmp_path: Path, theirs: str) -> None:
    RunRecord("r", job=theirs, status="finished").write(tmp_path)
    with pytest.raises(RunRefused, match=f"run 'r' is an? {theirs} already"):
        refuse_changes(tmp_path, None)  # type: ignore[arg-type]  # it is not looked at


def test_no_session_is_opened_in_another_jobs_folder_and_nothing_is_written(tmp_path: Path) -> None:
    RunRecord("r", status="finished").write(tmp_path)
    for job in ("command", "experiment"):
        with pytest.raises(RunRefused, match="is a train already"):
            Session(tmp_path, None, job, [])
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
