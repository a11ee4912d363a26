"""Tests of estimates: memory fit, hours, warnings about limits, and the comparison of GPUs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from job.memory import flops_per_token, network_size
from job.paths import CHECKOUT
from job.recipe import Recipe, load
from runner.cli import main
from runner.console import CliContext
from runner.planning import estimate, gpus
from runner.planning.estimate import compare_gpus, show_comparison
from runner.planning.gpus import GPU_TYPES, GpuRequest


def recipe(**train: object) -> Recipe:
    """Return GPT-2 124M's recipe with settings of ``train`` replaced."""
    tree = {
        "name": "gpt2",
        "data": {"dataset": "d", "tokenizer": "gpt2"},
        "train": {"max_steps": 19073, "global_batch_tokens": 524288, **train},
    }
    return Recipe.model_validate(tree)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("quickstart", []),
        ("shakespeare_char_cpu", []),
        ("quickstart", ["attention_pattern=SSL", "window_size=16"]),
        ("quickstart", ["value_embeddings=2", "smear=3"]),
    ],
)
def test_parameters_equal_the_networks(name: str, overrides: list[str]) -> None:
    from model.gpt import GPT

    settings = load(CHECKOUT / "configs" / f"{name}.yaml", overrides)
    size = network_size(settings.model, settings.data.tokenizer)
    network = GPT(settings.model, size.rows)
    assert size.parameters == sum(p.numel() for p in network.parameters())
    matrices = {n: p for n, p in network.named_parameters() if p.dim() == 2 and n != "smear"}
    assert size.matrices == sum(p.numel() for n, p in matrices.items() if "te." not in n)


def test_flops_follow_the_formula_and_count_the_windows_and_the_rows() -> None:
    gpt2 = load(CHECKOUT / "configs" / "gpt2_124m.yaml")
    assert flops_per_token(gpt2) == pytest.approx(854.7e6, rel=1e-3)
    path, windows = CHECKOUT / "configs" / "quickstart.yaml", ["attention_pattern=SSL"]
    full, short = load(path), load(path, [*windows, "window_size=16"])
    block, short_blocks = full.model.block_size, 2
    saved = 12 * full.model.n_embd * short_blocks
    assert flops_per_token(full) - flops_per_token(short) == saved * (block - 16)
    assert flops_per_token(short) - flops_per_token(short, window=4) == saved * (16 - 4)
    rows = network_size(full.model, "bytes").rows
    more = flops_per_token(full, rows + 64) - flops_per_token(full)
    assert more == 6 * 64 * full.model.n_embd


def test_advice_names_the_largest_micro_batch_that_fits() -> None:
    assert network_size(recipe().model, "gpt2").parameters == 124_475_904
    assert estimate.memory_fit(recipe(micro_batch=64), "H100", 8).fits
    assert "estimated" in estimate.describe_fit(recipe(micro_batch=32), ("H100",), 8)
    tight = estimate.memory_fit(recipe(micro_batch=64), "T4", 1)
    assert not tight.fits
    assert "will not fit" in estimate.describe_fit(recipe(micro_batch=64), ("H100", "T4"), 1)
    # The advised size fits with the same batch, and twice that size does not.
    assert tight.largest_micro_batch is not None
    assert tight.largest_grad_accum_steps is not None
    assert tight.largest_micro_batch * tight.largest_grad_accum_steps == recipe().sequences_per_step
    assert f"micro_batch={tight.largest_micro_batch}" in tight.advice
    assert estimate.memory_fit(recipe(micro_batch=tight.largest_micro_batch), "T4", 1).fits
    assert not estimate.memory_fit(recipe(micro_batch=2 * tight.largest_micro_batch), "T4", 1).fits


@pytest.mark.parametrize("gpu", ["T4", "L4", "H100"])
def test_auto_micro_batch_fits(gpu: str) -> None:
    assert estimate.memory_fit(recipe(micro_batch="auto"), gpu, 1).fits


def test_advice_for_a_network_too_large_for_one_sequence() -> None:
    tree = recipe().model_dump()
    tree["model"] |= {"n_layer": 48, "n_head": 25, "n_embd": 1600}
    fit = estimate.memory_fit(Recipe.model_validate(tree), "T4", 1)
    assert "a single sequence does not fit" in fit.advice


def test_hours_match_a_published_run() -> None:
    # nanoGPT: 300 B tokens in 4 days on 8 A100, so 10 B in 3.2 hours; llm.c's kernels do it in 1.5.
    hours = estimate.training_seconds(recipe(micro_batch=64), "A100-80GB", 8) / 3600
    assert 2.5 < hours < 4.0
    rest = estimate.training_seconds(recipe(micro_batch=64), "A100-80GB", 8, first_step=19073)
    assert rest == estimate.STARTUP_S


def test_speed_matches_its_sources() -> None:
    one = estimate.tokens_per_second(recipe(micro_batch=64), "H100", 1)
    assert one == pytest.approx(380_000, rel=0.05)  # nanoGPT's, by a user's report
    tree = recipe().model_dump()
    tree["model"] |= {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256}
    tree["data"] |= {"tokenizer": "chars"}
    tree["train"] |= {"max_steps": 5000, "global_batch_tokens": 16384, "eval_tokens": 1}
    tree["train"] |= {"micro_batch": 64}
    small = estimate.training_seconds(Recipe.model_validate(tree), "A100-40GB", 1)
    assert 120 < small - estimate.STARTUP_S < 240  # nanoGPT's own: about 3 minutes on an A100


def test_float32_is_slower_and_the_only_format_of_a_t4() -> None:
    half = estimate.tokens_per_second(recipe(micro_batch=8), "A10", 1)
    assert estimate.tokens_per_second(recipe(micro_batch=8, dtype="float32"), "A10", 1) == half / 2
    assert estimate.tokens_per_second(recipe(micro_batch=8), "T4", 1) < 5000


def test_activation_checkpointing_costs_a_third_more() -> None:
    plain = estimate.tokens_per_second(recipe(micro_batch=8), "H100", 1)
    again = estimate.tokens_per_second(
        recipe(micro_batch=8, activation_checkpointing=True), "H100", 1
    )
    assert plain / again == pytest.approx(4 / 3)


def test_evaluations_count() -> None:
    seldom = estimate.training_seconds(recipe(eval_every=5000, eval_tokens=10_485_760), "H100", 1)
    often = estimate.training_seconds(recipe(eval_every=50, eval_tokens=10_485_760), "H100", 1)
    assert 1.05 < often / seldom < 1.3


def plan(line: str, home: Path) -> Result:
    """Run ``runner LINE --dry-run`` with the recipes of this checkout, without a Modal token."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(home)}
    cli = CliContext(environ=environ, cwd=CHECKOUT, terminal=False)
    return CliRunner().invoke(main, [*line.split(), "--dry-run"], obj=cli)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "cloud gpt2_124m --gpu T4 --max-cost 5",
            "--max-cost pays for 0.59% of it, $5.00 of about $844.19",
        ),
        ("cloud gpt2_124m --gpu T4", "--timeout ends after 2.4% of it, 1d00h of about 41d"),
        ("cloud --max-cost 0.0001", "--max-cost pays for 0.07% of it, $0.0001 of about $0.14"),
        ("cloud --timeout 1s", "--timeout ends after 0.82% of it, 1s of about"),
    ],
)
def test_limits_that_end_too_early_give_a_warning(line: str, message: str, tmp_path: Path) -> None:
    planned = plan(line, tmp_path)
    assert planned.exit_code == 0, planned.stderr
    assert "warning" in planned.stderr
    assert message in " ".join(planned.stderr.split())


def test_limits_that_earlier_attempts_used_up_leave_nothing() -> None:
    hour, hourly = {"H100": 3600.0}, {"H100": 4.0}
    warning = estimate.limit_warnings(hour, hourly, 5.0, 3600.0, spent=6.0, used_s=7200.0)
    assert "--max-cost pays for 0% of it, $0.00 of about $4.00" in warning
    assert "--timeout ends after 0% of it, 0s of about 1h00m" in warning
    assert estimate.limit_warnings(hour, {"H100": 0.0}, 5.0, 9e9, spent=6.0, used_s=0.0) == ""


def test_sufficient_limits_give_no_warning(tmp_path: Path) -> None:
    assert "warning" not in plan("cloud --max-cost 1", tmp_path).stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "cloud gpt2_1558m --gpu T4",
            "a single sequence does not fit on one T4: it needs about 34 of 16 GB",
        ),
        ("cloud gpt2_1558m --gpu H100,T4", "a single sequence does not fit on one T4"),
        ("cloud --device mps", "--device mps is the GPU of a Mac, which cloud can't use"),
    ],
)
def test_impossible_launch_is_refused(line: str, message: str, tmp_path: Path) -> None:
    refused = plan(line, tmp_path)
    assert refused.exit_code == 2, refused.stderr
    assert message in refused.stderr


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
    settings = load(CHECKOUT / "configs" / "finetune_shakespeare.yaml", ("max_steps=0",))
    (row,) = compare_gpus(settings, [GpuRequest(("H100",), 1)], gpus.BUILT_IN_PRICES)
    assert row.usd_per_billion_tokens is None
    cli = CliContext(environ={}, cwd=tmp_path, terminal=False)
    show_comparison(settings, [row], gpus.BUILT_IN_PRICES, cli)
    assert " - " in capsys.readouterr().out
