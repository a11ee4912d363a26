"""`runner spend` compares the records with Modal's bill; the monthly cap limits launches."""

from __future__ import annotations

import datetime
import json

import pytest

from runner.targets.modal.runs import start_of_month
from tests.runner.targets.modal.cloud_run import put_run
from tests.runner.targets.modal.conftest import CloudFixture


@pytest.fixture
def cloud(light_cloud: CloudFixture) -> CloudFixture:
    """Use trainings without a network."""
    return light_cloud


def test_the_records_agree_with_the_bill(cloud: CloudFixture) -> None:
    cloud.run("cloud", "tiny", "--gpu", "T4", "-y", "max_steps=30")
    costs = {cost["run"]: cost for cost in json.loads(cloud.run("spend", "--json")[0])}
    recorded, billed = costs["tiny"]["recorded"], costs["tiny"]["billed"]
    assert billed > 0
    assert recorded == pytest.approx(billed, rel=0.5)  # the record lacks the start, which takes 3 s
    out, _ = cloud.run("spend")
    assert out.splitlines()[-1].startswith("total")
    (cloud.checkout / ".env").write_text("GPT_RUNNER_MONTHLY_CAP=0.0001\n")
    _, err = cloud.run("cloud", "tiny", "--name", "b", "--max-cost", "5", "--dry-run", status=1)
    assert "raise it in .env" in err
    put_run(cloud, "old")
    assert "old" not in cloud.run("spend")[0]
    assert "old" in cloud.run("spend", "--since", "1970-01")[0]


def test_the_monthly_cap_limits_a_launch(cloud: CloudFixture) -> None:
    (cloud.checkout / ".env").write_text("GPT_RUNNER_MONTHLY_CAP=5\n")
    launch = ("cloud", "tiny", "--gpu", "T4", "--dry-run")
    _, err = cloud.run(*launch, status=2)
    assert "launch with --max-cost 5.00 or less" in err
    cloud.run(*launch, "--max-cost", "5")
    cloud.run(*launch, "--max-cost", "6", status=2)


def test_a_month_starts_in_utc() -> None:
    now = datetime.datetime(2026, 11, 30, 23, 59, tzinfo=datetime.UTC)
    assert start_of_month(now) == datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
