"""`bench kernels` on the CPU with tiny networks."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import kernels
from bench.__main__ import main
from job.exit_status import ExitStatus
from tests.bench.conftest import read_results

TINY = ("n_layer=1", "n_head=2", "n_embd=32", "block_size=32", "micro_batch=4", "loss_chunk=64")


@pytest.mark.slow
def test_steps_products_and_attention_are_measured(
    bench_args: list[str], nanogpt_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "MIN_RUN_S", 0.01)
    out = tmp_path / "results.jsonl"
    args = ["kernels", *bench_args, *TINY, "decay_steps=null", "--out", str(out)]
    assert main([*args, "--baseline", f"nanogpt={nanogpt_folder}"]) == ExitStatus.DONE
    results = read_results(out)
    profiles = {r["trainer"]: r for r in results if r["what"] == "profile"}
    assert set(profiles) == {"ours", "speedrun"}
    assert profiles["ours"]["ms_by_kind"]["product"] > 0
    assert profiles["ours"]["kernels_per_step"] > 10
    products = [r["name"] for r in results if r["what"] == "product"]
    assert products == ["qkv", "projection", "mlp up", "mlp down", "head"]
    flash = [r["head_size"] for r in results if r["what"] == "attention" and r["kernel"] == "flash"]
    assert flash == [64, 128]
    # The fake checkout has no model.py, and a CPU has no cuDNN: each fails separately.
    failures = [(r["part"], r["why"]) for r in results if r["what"] == "failed"]
    assert [part for part, _ in failures] == ["profile", "attention", "attention"]
    assert "model.py is missing" in failures[0][1]
