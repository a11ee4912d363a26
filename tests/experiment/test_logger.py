"""TBLogger: curves appear immediately and have each step once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiment import TBLogger
from job.exit_status import UserError


def read_steps(folder: Path, kind: str) -> list[int]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if row["kind"] == kind]


def read_tensorboard(folder: Path, name: str) -> list[tuple[int, float]]:
    """Return the points of a TensorBoard curve."""
    events = EventAccumulator(str(folder / "tensorboard" / name))
    events.Reload()
    return [(event.step, round(event.value, 3)) for event in events.Scalars(f"{name}/loss")]


def test_resumed_attempt_repeats_no_step_and_keeps_other_curves(tmp_path: Path) -> None:
    train, val = TBLogger(tmp_path, "train"), TBLogger(tmp_path, "val")
    for step in range(1, 7):
        train.log(step, loss=1.0)
        if step % 3 == 0:
            val.log(step, loss=5.0)
    train.close()
    val.close()
    resumed = TBLogger(tmp_path, "train")
    for step in range(5, 9):  # from a checkpoint of step 4
        resumed.log(step, loss=0.5)
    resumed.close()
    assert read_steps(tmp_path, "train") == list(range(1, 9))
    assert read_steps(tmp_path, "val") == [3, 6]
    expected = [(s, 1.0) for s in range(1, 5)] + [(s, 0.5) for s in range(5, 9)]
    assert read_tensorboard(tmp_path, "train") == expected


def test_values_are_visible_before_the_end_and_nan_is_valid_json(tmp_path: Path) -> None:
    logger = TBLogger(tmp_path, "train")
    logger.log(1, loss=float("nan"), lr=0.1)
    logger.flush()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert json.loads(text) == {"kind": "train", "step": 1, "loss": None, "lr": 0.1}
    assert [step for step, _ in read_tensorboard(tmp_path, "train")] == [1]


def test_steps_and_values_may_be_tensors_and_numpy_numbers(tmp_path: Path) -> None:
    TBLogger(tmp_path, "train").log(torch.tensor(3), loss=torch.tensor([0.5]))  # type: ignore[arg-type]
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 3


@pytest.mark.parametrize("value", ["high", [1, 2], 10**400, torch.ones(2)])
def test_invalid_value_names_its_key(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match=r"log\(loss=...\): expected a number"):
        TBLogger(tmp_path).log(1, loss=value)  # type: ignore[arg-type]


def test_failing_tensorboard_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError("no space left")

    logger = TBLogger(tmp_path)
    logger.log(1, loss=1.0)
    assert logger._writer is not None
    monkeypatch.setattr(logger._writer.records, "write", refuse)
    logger.log(2, loss=1.0)
    logger.log(3, loss=1.0)
    assert read_steps(tmp_path, "train") == [1, 2, 3]
    assert capsys.readouterr().err.count("warning: TensorBoard failed") == 1


@pytest.mark.parametrize("tail", [b"\0" * 200, b'{"kind": "train", "st', b"\xff\xfe\x80abc\n"])
def test_damaged_tail_of_the_file_is_skipped(tmp_path: Path, tail: bytes) -> None:
    """A power cut leaves zeros, half a line or invalid bytes at the end of a file."""
    logger = TBLogger(tmp_path)
    logger.log(1, loss=1.0)
    logger.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    TBLogger(tmp_path).log(2, loss=1.0)
    assert read_steps(tmp_path, "train") == [1, 2]


def test_a_file_that_cannot_be_read_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"can't read .*metrics\.jsonl: Is a directory; remove it"):
        TBLogger(tmp_path, "train").log(1, loss=1.0)
