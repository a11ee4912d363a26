"""`bench steps`: networks of ours and of baselines take turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.__main__ import main
from job.exit_status import ExitStatus
from tests.bench.conftest import read_results


@pytest.mark.slow
def test_the_same_network_has_the_same_losses(bench_args: list[str], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    out = tmp_path / "results.jsonl"
    args = ["steps", *bench_args, "--baseline", "hf", "--steps", "5", "dtype=float32"]
    assert main([*args, "--no-compile", "--out", str(out)]) == ExitStatus.DONE
    (result,) = read_results(out)
    assert result["largest_difference_of_losses"]["hf"] < 1e-5
    assert result["last_losses"]["hf"] < result["first_losses"]["hf"]
    assert result["ours_speedup"]["hf"] > 0


def test_steps_needs_a_known_baseline(
    bench_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for baselines in ([], ["--baseline", "llmc=/x"]):
        assert main(["steps", *bench_args, *baselines]) == ExitStatus.ERROR
        assert "--baseline with some of: nanogpt, hf, nanochat" in capsys.readouterr().err
