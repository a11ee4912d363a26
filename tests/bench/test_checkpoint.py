"""`bench checkpoint` on a tiny recipe."""

from __future__ import annotations

import pytest

from bench.__main__ import main
from job.exit_status import ExitStatus
from tests.bench.conftest import read_results
from tests.model.conftest import Lab


@pytest.mark.slow
def test_runs_with_and_without_checkpoints_make_a_pair(lab: Lab, bench_args: list[str]) -> None:
    out = lab.folder / "results.jsonl"
    args = ["checkpoint", *bench_args, "--every", "20", "--checkpoints", "2"]
    assert main([*args, "--repeats", "1", "--out", str(out)]) == ExitStatus.DONE
    pair, result = read_results(out)
    assert len(pair["stalls_ms"]) == 2
    assert pair["seconds_without"] > 0
    assert result["share"] == pair["share"] > -1
