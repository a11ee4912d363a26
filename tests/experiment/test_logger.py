"""The curves of an experiment: live, and each step once."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiment import TBLogger


def steps(folder: Path, kind: str) -> list[int]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if row["kind"] == kind]


def shown(folder: Path, name: str) -> list[tuple[int, float]]:
    """What TensorBoard shows."""
    events = EventAccumulator(str(folder / "tensorboard" / name))
    events.Reload()
    return [(event.step, round(event.value, 3)) for event in events.Scalars(f"{name}/loss")]


def test_an_attempt_that_goes_on_doubles_no_step_and_leaves_other_curves_alone(tmp_path: Path) -> None:
    train, val = TBLogger(tmp_path, "train"), TBLogger(tmp_path, "val")
    for step in range(1, 7):
        train.log(step, loss=1.0)
        if step % 3 == 0:
            val.log(step, loss=5.0)
    train.close()
    val.close()
    again = TBLogger(tmp_path, "train")
    for step in range(5, 9):  # its checkpoint was of step 4
        again.log(step, loss=0.5)
    again.close()
    assert steps(tmp_path, "train") == list(range(1, 9))
    assert steps(tmp_path, "val") == [3, 6]
    assert shown(tmp_path, "train") == [(s, 1.0) for s in range(1, 5)] + [(s, 0.5) for s in range(5, 9)]


def test_it_can_be_watched_while_it_is_written(tmp_path: Path) -> None:
    logger = TBLogger(tmp_path, "train")
    logger.log(1, loss=float("nan"), lr=0.1)
    logger.flush()
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row == {"kind": "train", "step": 1, "loss": None, "lr": 0.1}
    assert [step for step, _ in shown(tmp_path, "train")] == [1]
