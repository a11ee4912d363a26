"""Commands that share a folder: a run resumes only from a file that it wrote itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from job.run_record import Attempt, RunRecord
from job.user_command.resume import CheckpointBackup, find_writers, resume_arguments

SHARED = ["out", "checkpoints", "w/out"]


def attempt(
    start: float,
    end: float | None = None,
    reason: str | None = None,
    folder: str = "/w",
    **launch: list[list[str]],
) -> Attempt:
    command = {"words": ["x"], "folder": folder, "persist": [SHARED], **launch}
    return Attempt(start, ended=end, reason=reason, launch={"command": command})


def run(checkpoints: Path, name: str, *attempts: Attempt) -> RunRecord:
    record = RunRecord(name, "command", attempts=list(attempts))
    (checkpoints / name).mkdir(parents=True)
    record.write(checkpoints / name)
    return record


def writer_at(record: RunRecord, folder: Path, moment: float, condition: str | None) -> str:
    file = folder / "ckpt"
    file.touch()
    os.utime(file, (moment, moment))
    return find_writers(record, folder, condition).other_writer(file)


@pytest.mark.parametrize("condition", ["out/ckpt.pt", "out/*.pt", None])
@pytest.mark.parametrize(
    ("written", "writer"),
    [
        (10.5, ""),  # during the first attempt of the run
        (20.5, "b"),
        (30.5, "c"),  # killed long ago
        (35.5, "c"),
        (40.5, ""),  # during the second attempt of the run
        (20.0, "b"),  # whole seconds, as some volumes store them
    ],
)
def test_the_last_run_that_was_active_wrote_the_file(
    tmp_path: Path, written: float, writer: str, condition: str | None
) -> None:
    mine = run(tmp_path, "a", attempt(10.1, 11), attempt(40.1, 41), attempt(50))
    run(tmp_path, "b", attempt(20.3, 21))
    run(tmp_path, "c", attempt(30.1, 30.1, "killed"), attempt(38, 39))
    assert writer_at(mine, tmp_path, written, condition) == writer


@pytest.mark.parametrize(
    ("other", "condition", "is_shared"),
    [
        (attempt(20.1, 21, folder="/elsewhere"), "out/ckpt.pt", True),  # the same volume path
        (attempt(20.1, 21, persist=[["out", "checkpoints", "w"]]), "out/ckpt.pt", True),
        (attempt(20.1, 21, persist=[["out", "checkpoints", "{run}/out"]]), "out/ckpt.pt", False),
        (attempt(20.1, 21, persist=[["out", "data", "w/out"]]), "out/ckpt.pt", False),
        (attempt(20.1, 21, persist=[]), "model.pt", True),  # written into the folder on the host
        (attempt(20.1, 21, folder="/elsewhere"), "model.pt", False),
        (attempt(20.1, 21), "$OUT_DIR/ckpt.pt", False),
        (Attempt(20.1, 21, launch={"command": ["damaged"]}), "out/ckpt.pt", False),
    ],
)
def test_only_a_run_that_writes_there_counts(
    tmp_path: Path, other: Attempt, condition: str, is_shared: bool
) -> None:
    mine = run(tmp_path, "a", attempt(10.1, 11), attempt(50))
    run(tmp_path, "b", other)
    assert writer_at(mine, tmp_path, 20.5, condition) == ("b" if is_shared else "")


def test_resume_ignores_the_file_of_a_different_run_or_restores_a_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints, folder = tmp_path / "c", tmp_path / "w"
    out, persisted = checkpoints / "a", folder / "out"
    persisted.mkdir(parents=True)
    file = persisted / "ckpt.pt"
    file.write_text("b")
    os.utime(file, (20.5, 20.5))
    mine = run(checkpoints, "a", attempt(10.1, 11), attempt(50))
    run(checkpoints, "b", attempt(20.1, 21))

    def resumed() -> list[str]:
        writers = find_writers(mine, checkpoints, "out/ckpt.pt")
        CheckpointBackup(file, out).restore(10, writers)
        return resume_arguments("--resume", "out/ckpt.pt", folder, [persisted], 10, out, writers)

    assert resumed() == []
    assert "ckpt.pt was written by run 'b'; starting without it" in capsys.readouterr().err
    copy = out / "last_complete" / "ckpt.pt"
    copy.parent.mkdir()
    copy.write_text("a")
    assert resumed() == ["--resume"]
    assert file.read_text() == "a"
    assert "was overwritten by run 'b'; restored its last complete copy" in capsys.readouterr().err
