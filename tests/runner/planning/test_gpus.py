"""Tests of ``--gpu`` and of prices: the table, the user's file, Modal's live rates."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path

import pytest

from job.exit_status import RecipeError
from job.machine import datasheet_flops
from job.paths import CHECKOUT
from runner.errors import RunnerError
from runner.planning import gpus
from runner.planning.gpus import BY_NAME, GpuRequest, RentedMachine, parse_gpus
from tests.runner.targets.modal.conftest import make_checkout, open_cloud

RATES = {"gpu_hour_cost_h100": "3.33", "cpu_hour_cost": "0.05", "mem_gib_hour_cost": "0.01"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("H100", GpuRequest(("H100",), 1)),
        ("h100:8", GpuRequest(("H100",), 8)),
        ("H100!:2,B200+:2", GpuRequest(("H100!", "B200+"), 2)),
        ("a100-80gb, L40S", GpuRequest(("A100-80GB", "L40S"), 1)),
    ],
)
def test_alternatives_keep_their_order(text: str, expected: GpuRequest) -> None:
    assert parse_gpus(text) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("H1000", "did you mean 'H100'?"),
        ("A10080GB", "did you mean 'A100-80GB'?"),
        ("rtx6000", "did you mean 'RTX-PRO-6000'?"),
        ("abacus", "Modal has T4, L4"),
        ("H100:9", "1 to 8 H100 GPUs, not 9; for more, add --nodes"),
        ("A10:5", "1 to 4 A10"),
        ("H100:two", "use H100:2"),
        ("H100:²", "invalid GPU count in 'H100:²'; use H100:2"),
        ("H100:99999999999", "invalid GPU count"),
        ("H100:0", "not 0"),
        ("8", "'8' is a number of GPUs without a type; write both: H100:8"),
        ("H100:8,A100:4", "use H100:8,A100:8"),
    ],
)
def test_error_names_the_valid_spelling(text: str, part: str) -> None:
    with pytest.raises(RunnerError) as caught:
        parse_gpus(text)
    assert part in caught.value.message
    assert caught.value.exit_code == 2


def test_every_gpu_has_a_peak_for_the_trainer() -> None:
    assert all(datasheet_flops(name) for name in BY_NAME)


def test_price_counts_gpus_cores_memory_and_nodes() -> None:
    machine = RentedMachine(GpuRequest(("H100",), 8), 16.0, 64.0)
    hourly = gpus.usd_per_hour(machine)["H100"]
    assert hourly == pytest.approx(8 * 3.95 + 16 * 0.04716 + 64 * 0.007992)
    assert gpus.usd_per_hour(machine, nodes=4)["H100"] == pytest.approx(4 * hourly)


@pytest.mark.parametrize(
    ("region", "factor"), [(None, 1.0), ("us", 1.15), ("us-east", 1.75), ("us,eu-west", 1.75)]
)
def test_region_raises_the_price(region: str | None, factor: float) -> None:
    machine = RentedMachine(GpuRequest(("T4",), 1), 0.0, 0.0)
    assert gpus.usd_per_hour(machine, region=region)["T4"] == pytest.approx(0.59 * factor)


def test_user_file_replaces_lines_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("date: 2026-11-20\nh100: 3.00\nCPU: 0\nMEMORY: 0\n")
    prices = gpus.current_prices(tmp_path, {"HOME": str(tmp_path)})
    machine = RentedMachine(GpuRequest(("H100",), 2), 4.0, 8.0)
    assert gpus.usd_per_hour(machine, prices=prices) == {"H100": 6.0}
    assert prices.table["L4"] == gpus.PRICE_TABLE["L4"]
    assert f"{tmp_path}/prices.yaml of 2026-11-20" in prices.source


def test_nearest_price_file_applies(tmp_path: Path) -> None:
    checkout, other = tmp_path / "checkout", tmp_path / "mine.yaml"
    home = tmp_path / ".config" / "gpt-runner" / "prices.yaml"
    environ = {"HOME": str(tmp_path)}
    assert gpus.current_prices(checkout, environ) == gpus.BUILT_IN_PRICES
    for folder in (checkout, home.parent):
        folder.mkdir(parents=True)
    home.write_text("H100: 1\n")
    assert gpus.current_prices(checkout, environ).table["H100"] == 1
    (checkout / "prices.yaml").write_text("H100: 2\n")
    assert gpus.current_prices(checkout, environ).table["H100"] == 2
    other.write_text("H100: 3\n")
    environ["GPT_RUNNER_PRICES"] = str(other)
    assert gpus.current_prices(checkout, environ).table["H100"] == 3


def test_live_rates_replace_the_table_if_plausible(tmp_path: Path) -> None:
    by_gpu = {"h100": 3.5, "a100_80gb": 2.4, "a10g": 1.0, "l4": 0.8 / 60, "x": 1.0}
    rates = {f"gpu_hour_cost_{name}": rate for name, rate in by_gpu.items()}
    rates |= {"cpu_hour_cost": 0.04, "egress_gib_cost": 0}
    live = gpus.prices_from_rates(rates, datetime.date(2026, 11, 21))
    assert live is not None
    assert [live.table[name] for name in ("H100", "H100!", "A100-80GB", "A10", "CPU")] == [
        3.5, 3.5, 2.4, 1.0, 0.04,
    ]  # fmt: skip
    assert live.table["L4"] == gpus.PRICE_TABLE["L4"], "a rate per minute is not plausible"
    assert "Modal's rates for this account of 2026-11-21; A100, A100-40GB, B200" in live.source
    assert gpus.prices_from_rates({"gpu_hour_cost_l4": 0.8 / 60}, datetime.date.today()) is None
    (tmp_path / "prices.yaml").write_text("A10: 0.5\n")
    mine = gpus.current_prices(tmp_path, {}, live)
    assert (mine.table["A10"], mine.table["H100"]) == (0.5, 3.5)
    assert "Modal's rates for this account" in mine.source


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("L4: 1\nH1000: 2\n", "prices.yaml:2: unknown GPU type 'H1000'; did you mean 'H100'?"),
        (
            "H100: cheap\n",
            "prices.yaml:1: H100: 'cheap' is not a price; write dollars per hour, H100: 3.50",
        ),
        ("H100: -1\n", "prices.yaml:1: H100: -1 is not a price"),
        ("date: today\n", "prices.yaml:1: date: 'today' is not a date; write 2026-11-20"),
        ("- H100\n", "prices.yaml: expected a mapping with lines like `H100: 3.50`"),
    ],
)
def test_invalid_line_is_named(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "prices.yaml").write_text(text)
    with pytest.raises((RunnerError, RecipeError)) as caught:
        gpus.current_prices(tmp_path, {})
    assert part in str(getattr(caught.value, "message", caught.value))


def test_variable_naming_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="GPT_RUNNER_PRICES=H100=3 is not a file"):
        gpus.current_prices(tmp_path, {"GPT_RUNNER_PRICES": "H100=3"})


def test_launch_and_estimate_use_live_rates(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    with open_cloud(checkout, tmp_path, rates=RATES) as cloud:
        plan = json.loads(cloud.run("cloud", "tiny", "--gpu", "H100", "--dry-run", "--json")[0])
        assert "Modal's rates for this account" in json.dumps(plan)
        live = json.loads(cloud.run("estimate", "tiny", "--gpu", "H100", "--live", "--json")[0])
        by_table = json.loads(cloud.run("estimate", "tiny", "--gpu", "H100", "--json")[0])
        assert "Modal's rates for this account" in live["prices"]
        assert "Modal's rates" not in by_table["prices"]
        cloud.train("--gpu", "H100", "max_steps=6")
        (attempt,) = cloud.ledger()["attempts"]
        hourly = [rates["gpus"][0]["usd_per_hour"] for rates in (live, by_table)]
        rest = 4 * 0.05 + 8 * 0.01
        assert hourly[0] == pytest.approx(3.33 + rest)
        assert hourly[1] > 3.95
        assert attempt["usd_per_hour"] == pytest.approx(hourly[0])


def test_table_applies_without_live_rates_and_live_fails(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    with open_cloud(checkout, tmp_path) as cloud:
        out, _ = cloud.run("cloud", "tiny", "--gpu", "H100", "--dry-run", "--json")
        assert "Modal's rates" not in out
        _, err = cloud.run("estimate", "tiny", "--live", status=1)
        assert "Modal returned no prices" in err


def test_hanging_modal_delays_neither_the_plan_nor_the_exit() -> None:
    """The interpreter waits for threads of an executor at its exit, but not for a daemon."""
    program = (
        "import time\n"
        "from runner.planning import gpus\n"
        "gpus.LIVE_PRICES_TIMEOUT_S, gpus._fetch_rates = 0.1, lambda: time.sleep(600)\n"
        "print(gpus.live_prices())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, cwd=CHECKOUT
    )
    assert (ended.returncode, ended.stdout) == (0, "None\n"), ended.stderr
