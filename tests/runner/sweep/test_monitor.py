"""Decisions during a sweep: the budget of a trial, the median rule, its curve and its metric."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from job.run_record import RunRecord, RunStatus
from runner.sweep.config import Space, SweepConfig
from runner.sweep.monitor import TrialMonitor, parse_curve, should_stop_early
from runner.sweep.objective import Objective
from runner.sweep.plan import allocate, expected_cost
from runner.sweep.record import SweepRecord, Trial, TrialStatus
from runner.target import LocalVolume, RunInfo


def left(budget: float | None, spent: float = 0.0, reserved: float = 0.0) -> float:
    """Return what is left of a sweep's budget."""
    ended = Trial(1, "a", {}, TrialStatus.FINISHED, cost=spent)
    running = Trial(2, "b", {}, TrialStatus.RUNNING, cap=reserved)
    return SweepRecord(
        "s", "cloud", "loss", "min", trials=[ended, running], budget=budget
    ).available_usd


class TestBudget:
    def test_sum_of_all_caps_never_exceeds_the_budget(self) -> None:
        budget = left(10.0, spent=3.0, reserved=1.0)
        assert sum(allocate(budget, 1.0, 4)) == pytest.approx(6.0)
        assert allocate(budget, 1.0, 1) == [6.0]

    def test_only_affordable_trials_start(self) -> None:
        assert allocate(left(10.0), 4.0, 4) == [5.0, 5.0]
        assert allocate(left(10.0, reserved=7.0), 4.0, 4) == []
        assert allocate(left(10.0, spent=10.0), None, 1) == []

    def test_without_a_budget_trials_have_no_cap(self) -> None:
        assert allocate(left(None), 100.0, 2) == [math.inf, math.inf]

    def test_finished_trials_replace_the_estimate(self) -> None:
        assert expected_cost(5.0, [1.0, 2.0]) == 1.5
        assert expected_cost(5.0, []) == 5.0


class TestMedianRule:
    OTHER_CURVES = {  # noqa: RUF012
        name: [(10, 3.0), (20, value)] for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0))
    }

    @pytest.mark.parametrize(
        ("values", "stops"),
        [
            ([(10, 4.0), (20, 3.5)], True),
            ([(10, 2.0), (20, 9.0)], False),  # its best value counts
            ([(10, 9.0)], False),  # before grace_steps
            ([], False),
        ],
    )
    def test_trial_that_is_worse_than_half_of_the_others_is_stopped(
        self, values: list[tuple[int, float]], stops: bool
    ) -> None:
        assert bool(should_stop_early(values, self.OTHER_CURVES, "min", 15)) is stops

    def test_the_goal_can_be_the_highest_value(self) -> None:
        others = {name: [(20, value)] for name, value in (("a", 0.5), ("b", 0.6), ("c", 0.7))}
        reason = should_stop_early([(20, 0.4)], others, "max", 0)
        assert reason == "median rule at step 20: best 0.4, median 0.6"
        assert not should_stop_early([(20, 0.9)], others, "max", 0)

    def test_needs_three_others_at_the_same_step(self) -> None:
        assert not should_stop_early([(20, 9.0)], {"a": [(20, 1.0)], "b": [(20, 1.0)]}, "min", 0)
        behind = {name: [(10, 1.0)] for name in "abc"}
        assert not should_stop_early([(20, 9.0)], behind, "min", 0)

    @pytest.mark.parametrize("goal", ["min", "max"])
    @pytest.mark.parametrize("diverged", [math.nan, math.inf, -math.inf])
    def test_a_diverged_trial_counts_as_the_worst(self, goal: str, diverged: float) -> None:
        worse, middle, better = (2.1, 2.0, 1.0) if goal == "min" else (1.0, 2.0, 2.1)
        others = {"a": [(10, middle)], "b": [(10, diverged)], "c": [(10, worse)]}
        assert not should_stop_early([(10, better)], others, goal, 0)
        for order in (["a", "b", "c"], ["b", "a", "c"], ["a", "c", "b"]):
            others = {
                name: [(10, {"a": better, "b": diverged, "c": middle}[name])] for name in order
            }
            assert not should_stop_early([(10, middle)], others, goal, 0)
            assert should_stop_early([(10, worse)], others, goal, 0)
            assert should_stop_early([(10, diverged)], others, goal, 0)

    def test_all_trials_may_have_diverged(self) -> None:
        others = {name: [(10, math.nan)] for name in "abc"}
        assert not should_stop_early([(10, 5.0)], others, "min", 0)
        assert not should_stop_early([(10, math.nan)], others, "min", 0)


class TestCurve:
    def test_has_the_values_of_the_metric(self) -> None:
        rows = [{"kind": "train", "step": 1, "loss": 5.0}, {"kind": "val", "step": 2, "loss": 4.0}]
        lines = [*map(json.dumps, rows), b'{"kind": "val", "st']
        assert parse_curve(lines, "val_loss") == parse_curve(lines, "best_val_loss") == [(2, 4.0)]
        assert parse_curve(lines, "train_loss") == [(1, 5.0)]
        line = json.dumps({"kind": "test", "step": 3, "score": 1})
        assert parse_curve([line], "score") == [(3, 1.0)]

    @pytest.mark.parametrize("text", ["NaN", "null"])
    def test_has_the_divergence(self, text: str) -> None:
        ((step, value),) = parse_curve(
            [f'{{"kind": "val", "step": 3, "loss": {text}}}'], "val_loss"
        )
        assert (step, math.isnan(value)) == (3, True)

    def test_only_new_lines_are_read(self, checkout: Path, cli, fake) -> None:
        lines = [
            json.dumps({"kind": "val", "step": n, "loss": float(n)}) + "\n" for n in range(1000)
        ]
        path = checkout / "volumes" / "checkpoints" / "s-001" / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        read: list[int] = []

        class CountingVolume(LocalVolume):
            def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
                text = super().read(path, start, length)
                read.append(len(text))
                return text

        fake.files = lambda volume: CountingVolume(checkout / "volumes" / volume)
        monitor = TrialMonitor(cli, fake, Objective(checkout, recipe_config()))
        assert monitor.curve("s-001") == []
        path.write_text("".join(lines))
        assert monitor.curve("s-001") == [(n, float(n)) for n in range(1000)]
        read.clear()
        with path.open("a") as file:
            file.write('{"kind": "val", "step": 1000, "loss": 1}\n')
        assert monitor.curve("s-001")[-2:] == [(999, 999.0), (1000, 1.0)]
        assert sum(read) < 1000
        path.write_text("".join(lines[:10]))
        assert len(monitor.curve("s-001")) == 10


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_trial_whose_metric_is_not_finite_failed(
    checkout: Path, cli, fake, make_run, value: str
) -> None:
    folder = make_run("s-001")
    record = RunRecord("s-001", status=RunStatus.FINISHED, val_loss=1.0)
    record.write(folder)
    text = (folder / "run.json").read_text()
    (folder / "run.json").write_text(text.replace('"val_loss": 1.0', f'"val_loss": {value}'))
    monitor = TrialMonitor(cli, fake, Objective(checkout, recipe_config()))
    trial = Trial(1, "s-001", {"lr": 1.0})
    monitor.conclude(trial, RunInfo("s-001", "train", "host", RunStatus.FINISHED))
    assert (trial.status, trial.metric) == (TrialStatus.FAILED, None)
    diverged = f"val_loss is {float(value.lower())}: the run diverged"
    # A record with an infinity is damaged: the trainer writes null.
    no_record = "the result has no number 'val_loss'"
    assert trial.reason == (diverged if value == "NaN" else no_record)


def recipe_config() -> SweepConfig:
    return SweepConfig(recipe="warm", space=Space(grid={"lr": [1]}), metric="val_loss")
