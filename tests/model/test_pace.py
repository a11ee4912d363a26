"""The estimate of a run's end from its first steps."""

from __future__ import annotations

import pytest

from job.recipe import TrainConfig
from job.run_record import read_record
from job.training_log import MEASURED_FROM, WARM_UP, EtaEstimator
from tests.model.conftest import Lab

CONFIG = TrainConfig(max_steps=1000, global_batch_tokens=100, eval_every=100, checkpoint_every=300)


def after_fifty(first: int = 0, **values: object) -> EtaEstimator:
    """Return a pace that compiled for a minute and then took 0.1 s per step."""
    pace = EtaEstimator(CONFIG.model_copy(update=values), first, eval_tokens=6000)
    pace.add_steps(WARM_UP, first + WARM_UP, 60.0)
    pace.add_steps(MEASURED_FROM - WARM_UP, first + MEASURED_FROM, 4.5)
    return pace


def test_the_warm_up_steps_do_not_count() -> None:
    pace = after_fifty(eval_every=10_000, checkpoint_every=10_000)
    pace.evaluations.append(0.0)
    assert pace.remaining_s(50) == pytest.approx(95.0)
    assert pace.remaining_s(49) is None


def test_remaining_evaluations_and_checkpoints_count() -> None:
    pace = after_fifty()
    # 10 evaluations of 6,000 tokens, at three times the training speed of 1,000 tokens/s.
    assert pace.remaining_s(50) == pytest.approx(95.0 + 10 * 2.0)
    for seconds in (9.0, 1.0, 1.0):  # the first one compiles
        pace.evaluations.append(seconds)
    pace.checkpoints.append(0.5)
    assert pace.remaining_s(50) == pytest.approx(95.0 + 10 * 1.0 + 4 * 0.5)
    assert pace.remaining_s(1000) == 0.0


def test_remaining_samples_count() -> None:
    pace = after_fifty(eval_every=10_000, checkpoint_every=10_000, sample_every=100)
    pace.evaluations.append(0.0)
    pace.samples.append(2.0)
    assert pace.remaining_s(50) == pytest.approx(
        95.0 + 9 * 2.0
    )  # the last sample comes after the training


def test_a_resumed_attempt_measures_again() -> None:
    pace = after_fifty(first=500)
    assert pace.reads_at(505)
    assert pace.reads_at(550)
    assert pace.remaining_s(540) is None
    assert pace.remaining_s(550) == pytest.approx(45.0 + 5 * 2.0)


def test_the_remaining_time_follows_the_remaining_tokens() -> None:
    pace = after_fifty(
        batch_schedule=[[200, 200], [600, 400]], eval_every=10_000, checkpoint_every=10_000
    )
    pace.evaluations.append(0.0)
    assert pace.remaining_s(50) == pytest.approx(0.1 * (150 + 2 * 400 + 4 * 400))
    pace.add_steps(
        250, 300, 0.1 * (150 + 2 * 100)
    )  # across the boundary a token takes as long as before
    assert pace.remaining_s(300) == pytest.approx(0.1 * (2 * 300 + 4 * 400))


@pytest.mark.parametrize(
    ("steps", "schedule"), [(150, []), (120, [[80, 512]])], ids=["even", "doubling"]
)
def test_a_run_estimates_its_end_after_50_steps(
    lab: Lab, steps: int, schedule: list[list[int]]
) -> None:
    # Most of a step is a sleep per token, so that the load of the machine hardly changes it.
    trainer = "import time, model.step as t; step = t.StepRunner._accumulate\n"
    slow = (
        "def slow(self, n, is_probe):\n"
        "    time.sleep(0.004 * len(self.windows(n)))\n"
        "    return step(self, n, is_probe)\n"
        "t.StepRunner._accumulate = slow\n"
    )
    words = [
        str(lab.recipe),
        f"max_steps={steps}",
        "eval_every=50",
        "checkpoint_every=50",
        "--name",
        "run",
    ]
    words.append(f"batch_schedule={schedule}")
    _, err = lab.run_python(
        f"{trainer}{slow}from model.train import main; raise SystemExit(main({words!r}))"
    )
    assert "from the first 50 steps" in err
    record = read_record(lab.run_folder("run"))
    assert record is not None
    assert record.expected_seconds is not None
    assert record.seconds > 150 * 0.032
    # Other tests may use the cores in the first half only.
    assert record.expected_seconds == pytest.approx(record.seconds, rel=0.20)
    assert record.expected_seconds_now == pytest.approx(record.seconds, rel=0.05)
