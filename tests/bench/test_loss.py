"""`bench loss` with a real trainer on a tiny recipe and a fake nanoGPT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import loss
from bench.__main__ import main
from job.exit_status import ExitStatus
from tests.bench.conftest import read_results
from tests.model.conftest import Lab


@pytest.mark.slow
def test_time_to_a_loss_ends_at_the_first_evaluation_below_it(
    lab: Lab, bench_args: list[str], nanogpt_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "SHAKESPEARE_TARGET", 4.2)  # the script's first evaluation says 4.1
    out = lab.folder / "results.jsonl"
    args = ["loss", "shakespeare", *bench_args, "max_steps=100000", "--out", str(out)]
    assert main([*args, "--baseline", f"nanogpt={nanogpt_folder}"]) == ExitStatus.DONE
    ours, nanogpt = read_results(out)
    assert (ours["trainer"], ours["reached"], ours["step"]) == ("ours", True, 20)  # of 100,000
    assert (nanogpt["reached"], nanogpt["step"], nanogpt["val_loss"]) == (True, 0, 4.1)


@pytest.mark.slow
def test_a_second_call_continues_with_the_remaining_rates_and_targets(
    lab: Lab, bench_args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "TOKEN_SHARES", (2,))
    out = lab.folder / "results.jsonl"
    args = ["loss", "novels", *bench_args, "global_batch_tokens=256", "warmup_steps=2"]
    args += ["--steps", "4", "--val-tokens", "512", "--out", str(out)]
    assert main([*args, "--rates", "1"]) == ExitStatus.DONE
    first = read_results(out)
    assert [r["what"] for r in first] == ["loss run", "loss"]  # without a baseline, no target

    def append(**result: object) -> None:
        out.write_text(out.read_text() + json.dumps(result) + "\n")

    # Results of an earlier call: a loss that any run reaches, and one that none reaches.
    seconds = {
        "wall_seconds": 1000.0,
        "training_seconds": 900.0,
        "training_seconds_without_compiling": 8.0,
    }
    for name, val_loss in (("nanogpt", 9.0), ("hf", 0.0)):
        append(what="loss run", trainer=name, lr=1e-3, steps=4, val_loss=val_loss, **seconds)
    # A target that an earlier call reached is not measured again.
    append(what="loss run", trainer="nanochat", lr=1.0, steps=4, val_loss=9.0, **seconds)
    reached = {"what": "time to a loss", "baseline": "nanochat", "target": 9.0}
    append(**reached)
    assert main([*args, "--rates", "1,2"]) == ExitStatus.DONE
    results = read_results(out)
    own_runs = [r for r in results if r.get("trainer") == "ours" and r["what"] == "loss run"]
    assert [r["lr"] for r in own_runs] == [0.003, 0.006]
    best = results[-1]
    assert (best["what"], best["rates_tried"]) == ("loss", 2)
    own_losses = [r["val_loss"] for r in results if r.get("trainer") == "ours"]
    assert best["val_loss"] == min(own_losses)
    (new,) = [r for r in results if r["what"] == "time to a loss" and r != reached]
    assert (new["baseline"], new["target"], new["of_its_tokens"]) == ("nanogpt", 9.0, 0.5)
    assert new["of_its_wall"] == pytest.approx(new["wall_seconds"] / 1000, abs=1e-3)
    assert 0 < new["of_its_training_without_compiling"] < 10
    assert [r["token_share"] for r in results if r["what"] == "short run"] == ["1/2"]
