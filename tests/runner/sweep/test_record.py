"""The record of a sweep: allowed changes, the ranking of its trials, and its display."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from runner.console import CliContext
from runner.errors import RunnerError
from runner.sweep.record import SweepRecord, Trial, TrialStatus, continue_sweep, read_sweep
from runner.sweep.results import (
    best_line,
    best_so_far,
    show_groups,
    show_outcome,
    show_trials,
    write_png,
)
from runner.views.charts import is_png

FINISHED, STOPPED, FAILED = TrialStatus.FINISHED, TrialStatus.STOPPED, TrialStatus.FAILED


class TestRecord:
    def record(self, *values: float, **changes: Any) -> SweepRecord:
        rows = [Trial(n, f"s-{n:03d}", {"lr": value}) for n, value in enumerate(values, 1)]
        fields = {"name": "s", "target": "host", "metric": "loss", "goal": "min"}
        return SweepRecord(**{**fields, **changes}, trials=rows)

    def test_trials_and_budget_can_be_added_but_not_changed(self) -> None:
        old = self.record(0.1, 0.2, budget=1.0)
        old.trials[0].status = FINISHED
        continued = continue_sweep(old, self.record(0.1, 0.2, 0.3, budget=5.0))
        assert [t.status for t in continued.trials] == ["finished", "waiting", "waiting"]
        assert continued.budget == 5.0
        with pytest.raises(RunnerError, match=r"trial 2: .*0\.2.* → .*0\.9"):
            continue_sweep(self.record(0.1, 0.2), self.record(0.1, 0.9))
        with pytest.raises(RunnerError, match="metric: loss → other"):
            continue_sweep(self.record(0.1), self.record(0.1, metric="other"))

    def test_shared_settings_must_not_change(self) -> None:
        old, new = (
            self.record(0.1, definition={"fixed": {}, "settings": {"train.max_steps": steps}})
            for steps in (4, 60)
        )
        with pytest.raises(RunnerError, match=r"train.max_steps: 4 → 60\n.*--name NEW-NAME"):
            continue_sweep(old, new)

    def test_record_of_a_different_release_may_lack_settings(self) -> None:
        new = self.record(0.1, definition={"fixed": {}, "settings": {"train.new": 1}})
        assert continue_sweep(self.record(0.1, definition={"fixed": {}}), new)
        older = self.record(0.1, definition={"fixed": {}, "settings": {"train.gone": 2}})
        assert continue_sweep(older, new)

    def test_finished_trials_rank_before_stopped_ones(self) -> None:
        record = self.record(1, 2, 3, 4)
        ends = [(FAILED, None), (STOPPED, 0.1), (FINISHED, 2.0), (FINISHED, 1.0)]
        for trial, (status, metric) in zip(record.trials, ends, strict=True):
            trial.status, trial.metric = status, metric
        assert [t.number for t in record.ranked()] == [4, 3, 2, 1]
        assert record.best is record.trials[3]

    def test_record_is_read_as_written(self, tmp_path: Path) -> None:
        record = self.record(0.1, 0.2, definition={"settings": {"train.max_steps": 4}})
        record.trials[0].status, record.trials[0].metric = FINISHED, 1.5
        record.write(tmp_path)
        assert read_sweep(tmp_path) == record

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_number_that_json_cannot_represent_is_null(self, tmp_path: Path, value: float) -> None:
        record = self.record(0.1, 0.2)
        record.trials[0].status, record.trials[0].metric = FINISHED, value
        record.write(tmp_path)
        tree = json.loads((tmp_path / "sweep.json").read_text(), parse_constant=pytest.fail)
        assert tree["trials"][0]["metric"] is None

    def test_nan_of_an_earlier_release_is_not_a_metric(self, tmp_path: Path) -> None:
        record = self.record(0.1)
        record.trials[0].status, record.trials[0].metric = FINISHED, 1.0
        record.write(tmp_path)
        path = tmp_path / "sweep.json"
        path.write_text(path.read_text().replace('"metric": 1.0', '"metric": NaN'))
        read = read_sweep(tmp_path)
        assert read is not None
        assert read.trials[0].metric is None
        assert read.best is None

    @pytest.mark.parametrize(
        "text", ["{", "[]", '{"trials": [{"status": "odd"}]}', '{"trials": 1}']
    )
    def test_a_damaged_record_names_the_remedy(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(RunnerError, match=r"is damaged .*move the file away"):
            read_sweep(tmp_path)


class TestSeeds:
    """The lowest trial, 0.0, is in the group lr=0.2, whose mean is the higher one."""

    SCORES = (
        ((0.1, 1), 1.0),
        ((0.1, 2), 2.0),
        ((0.1, 3), 3.0),
        ((0.2, 1), 0.0),
        ((0.2, 2), 5.0),
        ((0.2, 3), 7.0),
    )

    def record(self, goal: str = "min", key: str = "seed") -> SweepRecord:
        rows = [
            Trial(n, f"s-{n:03d}", {key: seed, "lr": lr}, status=FINISHED, metric=metric)
            for n, ((lr, seed), metric) in enumerate(self.SCORES, 1)
        ]
        return SweepRecord("s", "host", "loss", goal, trials=rows)

    @pytest.mark.parametrize("key", ["seed", "train.seed"])
    def test_the_best_mean_decides(self, key: str) -> None:
        first, second = self.record(key=key).groups
        assert (first.values, first.mean, first.sd, first.n, first.trials) == (
            {"lr": 0.1},
            2.0,
            1.0,
            3,
            3,
        )
        assert (second.values, second.mean, second.n) == ({"lr": 0.2}, 4.0, 3)
        assert second.sd == pytest.approx(math.sqrt(13))  # (16 + 1 + 9) / (3 - 1)
        best = self.record(key=key).best
        assert best is not None
        assert best.run == "s-001"
        best = self.record("max").best
        assert best is not None
        assert best.run == "s-006"

    def test_a_group_with_unfinished_trials_ranks_last(self) -> None:
        record = self.record()
        record.trials[2].status, record.trials[1].status = STOPPED, FAILED
        first, second = record.groups
        assert (first.values, second.values) == ({"lr": 0.2}, {"lr": 0.1})
        assert (second.mean, second.sd, second.n, second.trials) == (1.0, None, 1, 3)
        for trial in record.trials:
            trial.status = FAILED
        assert [(group.mean, group.n) for group in record.groups] == [(None, 0), (None, 0)]
        assert record.best is None

    def test_nan_is_the_worst_metric(self) -> None:
        record = self.record()
        record.trials[0].metric = math.nan
        assert [group.values["lr"] for group in record.groups] == [0.2, 0.1]
        assert record.ranked()[-1] is record.trials[0]

    def test_without_repeated_settings_the_best_trial_decides(self) -> None:
        record = self.record(key="sample.seed")
        assert record.groups == []
        assert record.best is record.trials[3]
        record = self.record()
        for n, trial in enumerate(record.trials):
            trial.values = {"seed": n, "lr": n / 10}  # like a random space
        assert record.groups == []
        assert record.best is record.trials[3]

    def test_the_means_are_shown_in_a_table_and_in_the_last_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        record = self.record()
        record.trials[5].status = FAILED
        cli = CliContext(environ={}, cwd=tmp_path, terminal=False)
        show_groups(cli, record)
        lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
        assert lines == [
            ["lr", "mean", "loss", "standard", "deviation", "n"],
            ["0.1", "2", "1", "3"],
            ["0.2", "2.5", "3.5", "2", "of", "3"],
        ]
        assert best_line(record) == (
            "best mean over seeds: lr=0.1: loss 2, standard deviation 1, n=3; "
            "the best of these runs is s-001 with 1"
        )
        assert best_so_far(record) == "; best mean 2, n=3, with lr=0.1"
        assert record.to_json()["settings"][0] == {
            "values": {"lr": 0.1}, "mean": 2.0, "sd": 1.0, "n": 3, "trials": 3, "best_run": "s-001"
        }  # fmt: skip

    def test_seeds_alone_are_one_group(self) -> None:
        record = self.record()
        record.trials = record.trials[:2]
        for trial in record.trials:
            del trial.values["lr"]
        assert best_line(record).startswith(
            "mean over seeds: loss 1.5, standard deviation 0.71, n=2; "
        )
        assert best_so_far(record) == "; best mean 1.5, n=2"


def test_a_trial_that_only_measures_ends_at_step_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        Trial(1, "s-1", {"init_from": "gpt2"}, status=FINISHED, metric=3.5),
        Trial(2, "s-2", {}),
    ]
    cli = CliContext(environ={}, cwd=tmp_path, terminal=False)
    show_trials(cli, SweepRecord("s", "host", "loss", "min", trials=rows))
    _, measured, waiting = (line.split() for line in capsys.readouterr().out.splitlines())
    assert (measured[2:4], waiting[2:4]) == (["3.5", "0"], ["-", "-"])


def test_the_png_is_written_atomically(tmp_path: Path) -> None:
    rows = [Trial(n, f"s-{n}", {"lr": n}, status=FINISHED, metric=1.0 / n) for n in (1, 2)]
    path = tmp_path / "sweep.png"
    assert write_png(SweepRecord("s", "host", "loss", "min", trials=rows), path) == path
    assert is_png(path)
    assert [found.name for found in tmp_path.iterdir()] == ["sweep.png"]


def test_results_with_a_divergence_are_valid_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        Trial(1, "s-1", {"lr": 1.0}, status=FINISHED, metric=2.0),
        Trial(2, "s-2", {"lr": 9.0}, status=FINISHED, metric=math.nan),
    ]
    cli = CliContext(environ={}, cwd=tmp_path, terminal=False)
    show_outcome(cli, SweepRecord("s", "host", "loss", "min", trials=rows), tmp_path, as_json=True)
    tree = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (tree["best"], tree["trials"][1]["metric"]) == ("s-1", None)
