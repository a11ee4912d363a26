"""Tests of `runner estimate`."""

from __future__ import annotations

from pathlib import Path

import pytest

from job.paths import CHECKOUT
from job.recipe import load
from runner.console import CliContext
from runner.pricing import gpus
from runner.pricing.estimate import compare_gpus, show_comparison
from runner.pricing.gpus import GPU_TYPES, GpuRequest
from tests.runner.pricing.test_estimate import recipe


def test_fitting_gpus_come_first_and_the_best_are_marked() -> None:
    every = [GpuRequest((name,)) for name in GPU_TYPES]
    rows = compare_gpus(recipe(micro_batch=64), every, gpus.BUILT_IN_PRICES)
    assert len(rows) == len(every)
    fitting = [row for row in rows if row.fit.fits]
    assert rows[: len(fitting)] == fitting
    assert [row.usd for row in fitting] == sorted(row.usd for row in fitting)
    assert [row for row in rows if row.cheapest] == fitting[:1]
    assert [row.seconds for row in rows if row.fastest] == [min(row.seconds for row in fitting)]
    assert all(row.fit.advice for row in rows[len(fitting) :])


def test_user_prices_decide_the_order() -> None:
    table = gpus.Prices({**gpus.PRICE_TABLE, "L4": 0.01, "CPU": 0, "MEMORY": 0}, "mine")
    rows = compare_gpus(recipe(micro_batch=8), [GpuRequest(("H100",)), GpuRequest(("L4",))], table)
    assert rows[0].gpu == "L4"
    assert rows[0].cheapest
    assert rows[0].usd == pytest.approx(rows[0].seconds / 3600 * 0.01)


def test_recipe_without_training_has_no_price_per_token(tmp_path: Path, capsys) -> None:
    recipe = load(CHECKOUT / "configs" / "finetune_shakespeare.yaml", ("max_steps=0",))
    (row,) = compare_gpus(recipe, [GpuRequest(("H100",), 1)], gpus.BUILT_IN_PRICES)
    assert row.usd_per_billion_tokens is None
    show_comparison(
        recipe, [row], gpus.BUILT_IN_PRICES, CliContext(environ={}, cwd=tmp_path, terminal=False)
    )
    assert " - " in capsys.readouterr().out
