"""What a sweep decides: its trials, who may start for how much, who is hopeless."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from runner.console import CliContext
from runner.sweep.config import Distribution, Space, SweepConfig, trials
from runner.sweep.monitor import TrialMonitor, curve, should_prune
from runner.sweep.objective import Objective
from runner.sweep.record import SweepRecord, Trial, continue_sweep
from runner.sweep.results import best_in_words, best_so_far, show_means, show_results, write_png
from runner.sweep.scheduler import BudgetState, allocate, expected_cost
from runner.target import LocalVolume
from runner.views.charts import is_png


class TestSpace:
    def test_a_grid_is_every_combination_in_the_order_of_the_file(self) -> None:
        found = trials(Space(grid={"lr": [0.1, 0.2], "n": [1, 2]}))
        assert found == [
            {"lr": 0.1, "n": 1},
            {"lr": 0.1, "n": 2},
            {"lr": 0.2, "n": 1},
            {"lr": 0.2, "n": 2},
        ]

    def test_random_ones_lie_in_their_ranges_and_a_seed_draws_the_same(self) -> None:
        space = {
            "lr": Distribution(loguniform=[1e-4, 1e-1]),
            "p": Distribution(uniform=[0.2, 0.3]),
            "n": Distribution(ints=[2, 4]),
            "v": Distribution(choice=["a", True]),
        }
        found = trials(Space(random=space, trials=200, seed=3))
        assert len(found) == 200
        assert all(1e-4 <= t["lr"] <= 1e-1 and 0.2 <= t["p"] <= 0.3 for t in found)
        assert {t["n"] for t in found} == {2, 3, 4}
        assert {t["v"] for t in found} == {"a", True}
        logs = [math.log10(t["lr"]) for t in found]
        assert -2.8 < sum(logs) / len(logs) < -2.2  # uniform in the exponent: -2.5
        assert found == trials(Space(random=space, trials=200, seed=3))
        assert found != trials(Space(random=space, trials=200, seed=4))

    def test_more_trials_begin_with_those_before_and_another_key_changes_no_value(self) -> None:
        lr = {"lr": Distribution(uniform=[0, 1])}
        short, long = (trials(Space(random=lr, trials=n)) for n in (5, 9))
        assert long[:5] == short
        wider = trials(Space(random={**lr, "n": Distribution(ints=[1, 9])}, trials=5))
        assert [t["lr"] for t in wider] == [t["lr"] for t in short]

    def test_a_small_space_is_drawn_once(self) -> None:
        found = trials(Space(random={"n": Distribution(ints=[1, 3])}, trials=10))
        assert sorted(t["n"] for t in found) == [1, 2, 3]


class TestBudget:
    def test_the_sum_of_all_caps_never_exceeds_it(self) -> None:
        purse = BudgetState(10.0, spent=3.0, reserved=1.0)
        assert sum(allocate(purse, 1.0, 4)) == pytest.approx(6.0)
        assert allocate(purse, 1.0, 1) == [6.0]

    def test_only_as_many_start_as_can_be_paid_for(self) -> None:
        assert allocate(BudgetState(10.0), 4.0, 4) == [5.0, 5.0]
        assert allocate(BudgetState(10.0, reserved=7.0), 4.0, 4) == []
        assert allocate(BudgetState(10.0, spent=10.0), None, 1) == []

    def test_without_one_there_is_no_cap(self) -> None:
        assert allocate(BudgetState(None), 100.0, 2) == [math.inf, math.inf]

    def test_what_trials_took_is_better_known_than_the_estimate(self) -> None:
        assert expected_cost(5.0, [1.0, 2.0]) == 1.5
        assert expected_cost(5.0, []) == 5.0


class TestMedianRule:
    OTHERS = {  # noqa: RUF012
        name: [(10, 3.0), (20, value)] for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0))
    }

    @pytest.mark.parametrize(
        ("values", "stopped"),
        [
            ([(10, 4.0), (20, 3.5)], True),
            ([(10, 2.0), (20, 9.0)], False),  # it was good once
            ([(10, 9.0)], False),  # before the grace is over
            ([], False),
        ],
    )
    def test_who_is_worse_than_half_of_the_others(
        self, values: list[tuple[int, float]], stopped: bool
    ) -> None:
        assert bool(should_prune(values, self.OTHERS, "min", 15)) is stopped

    def test_the_goal_may_be_the_highest(self) -> None:
        others = {name: [(20, value)] for name, value in (("a", 0.5), ("b", 0.6), ("c", 0.7))}
        assert should_prune([(20, 0.4)], others, "max", 0)
        assert not should_prune([(20, 0.9)], others, "max", 0)

    def test_two_others_say_too_little_and_those_behind_nothing(self) -> None:
        assert not should_prune([(20, 9.0)], {"a": [(20, 1.0)], "b": [(20, 1.0)]}, "min", 0)
        behind = {name: [(10, 1.0)] for name in "abc"}
        assert not should_prune([(20, 9.0)], behind, "min", 0)

    def test_the_curve_of_a_metric_is_found_in_the_lines(self) -> None:
        rows = [{"kind": "train", "step": 1, "loss": 5.0}, {"kind": "val", "step": 2, "loss": 4.0}]
        lines = [*map(json.dumps, rows), b'{"kind": "val", "st']
        assert curve(lines, "val_loss") == curve(lines, "best_val_loss") == [(2, 4.0)]
        assert curve(lines, "train_loss") == [(1, 5.0)]
        assert curve([json.dumps({"kind": "test", "step": 3, "score": 1})], "score") == [(3, 1.0)]

    def test_of_a_curve_that_grows_only_the_new_lines_are_read(
        self, checkout: Path, cli, fake
    ) -> None:
        lines = [
            json.dumps({"kind": "val", "step": n, "loss": float(n)}) + "\n" for n in range(1000)
        ]
        path = checkout / "volumes" / "checkpoints" / "s-001" / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        read: list[int] = []

        class Counting(LocalVolume):
            def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
                text = super().read(path, start, length)
                read.append(len(text))
                return text

        fake.files = lambda volume: Counting(checkout / "volumes" / volume)
        config = SweepConfig(recipe="warm", space=Space(grid={"lr": [1]}), metric="val_loss")
        look = TrialMonitor(cli, fake, Objective(checkout, config))
        assert look.curve("s-001") == []
        path.write_text("".join(lines))
        assert look.curve("s-001") == [(n, float(n)) for n in range(1000)]
        read.clear()
        with path.open("a") as file:
            file.write('{"kind": "val", "step": 1000, "loss": 1}\n')
        assert look.curve("s-001")[-2:] == [(999, 999.0), (1000, 1.0)]
        assert sum(read) < 1000
        path.write_text("".join(lines[:10]))
        assert len(look.curve("s-001")) == 10


class TestRecord:
    def record(self, *values: float, **more: object) -> SweepRecord:
        rows = [Trial(n, f"s-{n:03d}", {"lr": value}) for n, value in enumerate(values, 1)]
        return SweepRecord(
            **{"name": "s", "target": "host", "metric": "loss", "goal": "min", **more}, trials=rows
        )  # type: ignore[arg-type]

    def test_more_trials_and_another_budget_go_on_another_space_does_not(self) -> None:
        old = self.record(0.1, 0.2, budget=1.0)
        old.trials[0].status = "finished"
        going = continue_sweep(old, self.record(0.1, 0.2, 0.3, budget=5.0))
        assert [t.status for t in going.trials] == ["finished", "waiting", "waiting"]
        assert going.budget == 5.0
        with pytest.raises(Exception, match=r"trial 2: .*0\.2.* → .*0\.9"):
            continue_sweep(self.record(0.1, 0.2), self.record(0.1, 0.9))
        with pytest.raises(Exception, match="metric: loss → other"):
            continue_sweep(self.record(0.1), self.record(0.1, metric="other"))

    def test_best_first_stopped_ones_behind_the_finished(self) -> None:
        record = self.record(1, 2, 3, 4)
        marks = [("failed", None), ("stopped", 0.1), ("finished", 2.0), ("finished", 1.0)]
        for trial, (status, metric) in zip(record.trials, marks, strict=True):
            trial.status, trial.metric = status, metric  # type: ignore[assignment]
        assert [t.number for t in record.ranked()] == [4, 3, 2, 1]
        assert record.best is record.trials[3]


class TestSeeds:
    """The lowest trial, 0.0, is of the setting lr=0.2, whose mean is the higher one."""

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
            Trial(n, f"s-{n:03d}", {key: seed, "lr": lr}, status="finished", metric=metric)
            for n, ((lr, seed), metric) in enumerate(self.SCORES, 1)
        ]
        return SweepRecord("s", "host", "loss", goal, trials=rows)

    @pytest.mark.parametrize("key", ["seed", "train.seed"])
    def test_the_best_setting_is_that_of_the_best_mean(self, key: str) -> None:
        first, second = self.record(key=key).settings
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

    def test_a_setting_of_which_some_did_not_finish_stands_behind(self) -> None:
        record = self.record()
        record.trials[2].status, record.trials[1].status = "stopped", "failed"
        first, second = record.settings
        assert (first.values, second.values) == ({"lr": 0.2}, {"lr": 0.1})
        assert (second.mean, second.sd, second.n, second.trials) == (1.0, None, 1, 3)
        for trial in record.trials:
            trial.status = "failed"
        assert [(s.mean, s.n) for s in record.settings] == [(None, 0), (None, 0)]
        assert record.best is None

    def test_one_that_is_no_number_is_the_worst(self) -> None:
        record = self.record()
        record.trials[0].metric = math.nan
        assert [s.values["lr"] for s in record.settings] == [0.2, 0.1]
        assert record.ranked()[-1] is record.trials[0]

    def test_without_seeds_or_with_one_for_each_the_best_trial_is_the_best(self) -> None:
        record = self.record(key="sample.seed")
        assert record.settings == []
        assert record.best is record.trials[3]
        record = self.record()
        for n, trial in enumerate(record.trials):
            trial.values = {"seed": n, "lr": n / 10}  # as a random space draws them
        assert record.settings == []
        assert record.best is record.trials[3]

    def test_the_means_are_a_table_and_the_last_line_says_by_what_it_judges(
        self, tmp_path: Path, capsys
    ) -> None:
        record = self.record()
        record.trials[5].status = "failed"
        cli = CliContext(environ={}, cwd=tmp_path, terminal=False)
        show_means(cli, record)
        lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
        assert lines == [
            ["lr", "mean", "loss", "standard", "deviation", "n"],
            ["0.1", "2", "1", "3"],
            ["0.2", "2.5", "3.5", "2", "of", "3"],
        ]
        assert best_in_words(record) == (
            "best by the mean over seeds: lr=0.1: loss 2, standard deviation 1, n=3; "
            "the best of these runs is s-001 with 1"
        )
        assert best_so_far(record) == "; best mean 2, n=3, with lr=0.1"
        assert record.facts()["settings"][0] == {
            "values": {"lr": 0.1}, "mean": 2.0, "sd": 1.0, "n": 3, "trials": 3, "best_run": "s-001"
        }  # fmt: skip

    def test_seeds_alone_are_one_setting(self) -> None:
        record = self.record()
        record.trials = record.trials[:2]
        for trial in record.trials:
            del trial.values["lr"]
        assert best_in_words(record).startswith(
            "mean over seeds: loss 1.5, standard deviation 0.71, n=2; "
        )
        assert best_so_far(record) == "; best mean 1.5, n=2"


def test_a_trial_that_only_measures_ends_at_step_zero(tmp_path: Path, capsys) -> None:
    rows = [
        Trial(1, "s-1", {"init_from": "gpt2"}, status="finished", metric=3.5),
        Trial(2, "s-2", {}),
    ]
    cli = CliContext(environ={}, cwd=tmp_path, terminal=False)
    show_results(cli, SweepRecord("s", "host", "loss", "min", trials=rows))
    _, measured, waiting = (line.split() for line in capsys.readouterr().out.splitlines())
    assert (measured[2:4], waiting[2:4]) == (["3.5", "0"], ["-", "-"])


def test_the_picture_is_written_whole(tmp_path: Path) -> None:
    rows = [Trial(n, f"s-{n}", {"lr": n}, status="finished", metric=1.0 / n) for n in (1, 2)]
    path = tmp_path / "sweep.png"
    assert write_png(SweepRecord("s", "host", "loss", "min", trials=rows), path) == path
    assert is_png(path)
    assert [found.name for found in tmp_path.iterdir()] == ["sweep.png"]
