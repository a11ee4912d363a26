"""The memory estimate against torch's count, and the largest micro-batch that fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from job.memory import (
    AUTO_ON_CPU,
    chosen_micro_batch,
    largest_micro_batch,
    micro_batch_size,
    training_memory,
)
from job.recipe import Recipe, load
from tests.model.live_memory import peak_bytes

ROOT = Path(__file__).resolve().parents[2]

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2_124m": {"variant": "gpt2"},
    # A third of 124M's layers: counting is slow, and every layer adds the same.
    "gpt2_shallow": {"variant": "gpt2", "n_layer": 4},
    "modern_shallow": {"variant": "modern", "n_layer": 4, "n_head": 6},
    "windows_shallow": {
        "variant": "modern",
        "n_layer": 4,
        "n_head": 6,
        "attention_pattern": "SSSL",
        "window_size": 256,
    },
    "gpt2_350m": {"variant": "gpt2", "n_layer": 24, "n_head": 16, "n_embd": 1024},
    "modern_124m": {"variant": "modern", "n_head": 6},
    "modern_1b": {
        "variant": "modern",
        "n_layer": 24,
        "n_head": 16,
        "n_embd": 2048,
        "block_size": 2048,
    },
}


def recipe(name: str = "gpt2_124m", **train: Any) -> Recipe:
    """Return a recipe of configs/, or a network of SHAPES with 524,288 tokens per step."""
    path = ROOT / "configs" / f"{name}.yaml"
    if name not in SHAPES:
        return load(path, [f"{key}={value}" for key, value in train.items()])
    tree = {
        "model": SHAPES[name],
        "data": {"dataset": "d", "tokenizer": "gpt2"},
        "train": {"max_steps": 100, "global_batch_tokens": 524288, **train},
    }
    return Recipe.model_validate(tree)


CHECKPOINTED = {"activation_checkpointing": True}
CHUNKED = {"loss_chunk": 4096}
MUON = {"optimizer": "muon"}


@pytest.mark.parametrize(
    ("name", "micro_batch", "bf16", "train"),
    [
        ("quickstart", 8, False, {}),
        ("shakespeare_char_cpu", 12, True, {}),
        (
            "shakespeare_char",
            64,
            True,
            {"variant": "gpt2", "dropout": 0.2, "global_batch_tokens": 16384},
        ),
        ("gpt2_shallow", 16, True, {}),
        ("gpt2_shallow", 1, True, {}),
        ("gpt2_shallow", 16, False, {}),
        ("gpt2_shallow", 16, True, CHECKPOINTED),
        ("gpt2_shallow", 32, True, CHUNKED),
        ("modern_shallow", 16, True, {}),
        ("modern_shallow", 1, True, MUON),
        ("windows_shallow", 1, True, {}),
        ("modern_shallow", 32, True, {**MUON, **CHECKPOINTED, **CHUNKED}),
        pytest.param("gpt2_124m", 64, True, {}, marks=pytest.mark.slow),
        pytest.param("modern_124m", 32, True, MUON, marks=pytest.mark.slow),
        pytest.param("gpt2_350m", 8, True, {}, marks=pytest.mark.slow),
        pytest.param("modern_1b", 1, True, {}, marks=pytest.mark.slow),
        pytest.param("modern_1b", 8, True, {}, marks=pytest.mark.slow),
    ],
)
def test_the_estimate_is_within_ten_percent_of_the_count(
    name: str, micro_batch: int, bf16: bool, train: dict[str, Any]
) -> None:
    settings = recipe(name, **train)
    counted = peak_bytes(settings, micro_batch, bf16)
    estimate = training_memory(settings, micro_batch, bf16=bf16, compiled=False).peak
    sizes = f"{estimate / 1e9:.3f} of {counted / 1e9:.3f} GB"
    print(f"{name} {micro_batch} {train}: {sizes}, {estimate / counted - 1:+.1%}")
    assert estimate == pytest.approx(counted, rel=0.10)


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    settings = recipe()
    memory = 80e9
    size = largest_micro_batch(settings, memory)
    assert size is not None
    assert (
        training_memory(settings, size).on_gpu
        <= memory
        < training_memory(settings, 2 * size).on_gpu
    )
    assert settings.sequences_per_step % size == 0
    assert largest_micro_batch(settings, 1e9) is None


def test_auto_selects_a_fitting_micro_batch_and_a_number_is_kept() -> None:
    assert chosen_micro_batch(recipe(micro_batch=7), 80e9) == 7
    auto = recipe(micro_batch="auto")
    assert chosen_micro_batch(auto, None) == AUTO_ON_CPU
    assert chosen_micro_batch(auto, 1e9) == 1
    assert chosen_micro_batch(auto, 24e9) < chosen_micro_batch(auto, 80e9) == 64
    # 16 processes share a step of 512 sequences.
    assert chosen_micro_batch(auto, 1e12, processes=16) == 32


@pytest.mark.parametrize(
    ("sequences", "most", "size"), [(12, 12, 12), (12, 16, 12), (12, 5, 4), (7, 3, 1)]
)
def test_micro_batches_have_one_size(sequences: int, most: int, size: int) -> None:
    assert micro_batch_size(sequences, most) == size
