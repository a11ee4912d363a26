"""What an account pays now, asked of Modal: in the plan of a launch, in the table of GPUs, in what a run costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from job.paths import CHECKOUT
from job.recipe import load
from runner.console import CliContext
from runner.pricing.compare import compare_gpus, show_comparison
from runner.pricing.gpus import GpuRequest
from runner.pricing.prices import BUILT_IN
from tests.runner.targets.modal.conftest import make_checkout, open_lab

RATES = {"gpu_hour_cost_h100": "3.33", "cpu_hour_cost": "0.05", "mem_gib_hour_cost": "0.01"}


def test_a_launch_and_the_table_of_gpus_take_modals_rates(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    with open_lab(checkout, tmp_path, rates=RATES) as lab:
        plan = json.loads(lab.run("cloud", "tiny", "--gpu", "H100", "--dry-run", "--json")[0])
        assert "Modal's rates for this account" in json.dumps(plan)
        found = json.loads(lab.run("plan", "tiny", "--gpu", "H100", "--live", "--json")[0])
        by_table = json.loads(lab.run("plan", "tiny", "--gpu", "H100", "--json")[0])
        assert "Modal's rates for this account" in found["prices"]
        assert "Modal's rates" not in by_table["prices"]
        lab.train("--gpu", "H100", "max_steps=6")
        (attempt,) = lab.ledger()["attempts"]
        hourly = [said["gpus"][0]["usd_per_hour"] for said in (found, by_table)]
        rest = 4 * 0.05 + 8 * 0.01
        assert hourly[0] == pytest.approx(3.33 + rest)
        assert hourly[1] > 3.95
        assert attempt["usd_per_hour"] == pytest.approx(hourly[0])


def test_where_modal_gives_none_the_table_counts_and_live_says_so(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    with open_lab(checkout, tmp_path) as lab:
        out, _ = lab.run("cloud", "tiny", "--gpu", "H100", "--dry-run", "--json")
        assert "Modal's rates" not in out
        _, err = lab.run("plan", "tiny", "--live", status=1)
        assert "Modal gave no rates" in err


def test_a_modal_that_never_answers_holds_up_neither_the_plan_nor_its_end() -> None:
    """A thread of an executor would be waited for when the interpreter ends."""
    program = (
        "import time\n"
        "from runner.pricing import prices\n"
        "prices.PATIENCE, prices._ask = 0.1, lambda: time.sleep(600)\n"
        "print(prices.live_prices())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, cwd=CHECKOUT
    )
    assert (ended.returncode, ended.stdout) == (0, "None\n"), ended.stderr


def test_of_a_recipe_that_trains_nothing_a_token_has_no_price(tmp_path: Path, capsys) -> None:
    recipe = load(CHECKOUT / "configs" / "finetune_shakespeare.yaml", ("max_steps=0",))
    (row,) = compare_gpus(recipe, [GpuRequest(("H100",), 1)], BUILT_IN)
    assert row.usd_per_billion_tokens is None
    show_comparison(recipe, [row], BUILT_IN, CliContext(environ={}, cwd=tmp_path, terminal=False))
    assert " - " in capsys.readouterr().out
