"""`runner cloud` against the stand-in: it trains for real."""

from __future__ import annotations

from tests.runner.cloud.conftest import Lab


def test_the_default_flow_trains_and_ends_with_the_jobs_status(lab: Lab) -> None:
    out, err = lab.train("--gpu", "T4")
    print(out, err)
    assert lab.steps()[-1] == 60
