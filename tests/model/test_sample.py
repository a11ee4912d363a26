"""Sampling: temperature, top-k and top-p, generation with the cache, and prompts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from corpus.tokenizers import ByteTokenizer, CharTokenizer
from job.paths import CONFIGS
from job.recipe import SampleConfig, load
from job.training_errors import NonFiniteLoss
from model.gpt import GPT
from model.sample import draw, generate, prompt_tokens
from model.train import _sample
from tests.model.test_gpt import network

LOGITS = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).log_softmax(-1)


UNLIMITED = {"temperature": 1.0, "top_k": None}


def drawn(**settings: object) -> set[int]:
    """Return the tokens among 400 draws."""
    config = SampleConfig(**{**UNLIMITED, **settings})  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    return set(draw(LOGITS.expand(400, -1), config, generator).tolist())


def test_temperature_zero_selects_the_most_likely() -> None:
    assert drawn(temperature=0) == {3}


def test_all_tokens_are_drawn_without_limits() -> None:
    assert drawn() == {0, 1, 2, 3}


def test_top_k_keeps_the_k_most_likely() -> None:
    assert drawn(top_k=2) == {2, 3}
    assert drawn(top_k=1) == {3}
    assert drawn(top_k=99) == {0, 1, 2, 3}


def test_top_p_keeps_the_fewest_that_reach_p() -> None:
    # the probabilities are 0.032, 0.087, 0.237, 0.644
    assert drawn(top_p=0.6) == {3}
    assert drawn(top_p=0.7) == {2, 3}
    assert drawn(top_p=0.9) == {1, 2, 3}
    assert drawn(top_p=1.0) == {0, 1, 2, 3}


WINDOWS = {"n_layer": 4, "attention_pattern": "SSSL", "window_size": 5}


def text(
    shape: dict[str, object] | None = None,
    prompt: list[int] | None = None,
    num_tokens: int = 128,
    eot: int | None = None,
    **settings: object,
) -> list[list[int | None]]:
    defaults = {**UNLIMITED, "num_samples": 2, "max_new_tokens": 20, "seed": 5}
    config = SampleConfig(**{**defaults, **settings})  # type: ignore[arg-type]
    return list(generate(network(**(shape or {})), prompt or [1, 2, 3], config, num_tokens, eot))


def test_a_seed_gives_the_same_text_and_another_seed_another() -> None:
    assert text() == text()
    assert text() != text(seed=6)


@pytest.mark.parametrize("shape", [{}, WINDOWS], ids=["full", "windows"])
def test_greedy_text_is_the_same_without_the_cache(shape: dict[str, object]) -> None:
    got = [row[0] for row in text(shape, temperature=0)]
    made, tokens = network(**shape), [1, 2, 3]
    for _ in range(20):
        tokens.append(int(made(torch.tensor([tokens]))[0, -1].argmax()))
    assert got == tokens[3:]


def test_sampling_from_a_compiled_network_compiles_nothing(tmp_path: Path) -> None:
    made, graphs = GPT(network().config, vocab_size=320), []

    def as_it_is(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    for block in made.h:
        block.compile(dynamic=False, backend=as_it_is)
    recipe = load(CONFIGS / "quickstart.yaml", ["sample.max_new_tokens=3"])
    trainer = SimpleNamespace(
        recipe=recipe, folder=tmp_path, display=SimpleNamespace(log_only=lambda text: None)
    )
    _sample(trainer, ByteTokenizer(), [1, 2], made, 7, None)  # type: ignore[arg-type]
    assert (tmp_path / "samples" / "step_00000007.txt").exists()
    assert not graphs
    made(torch.tensor([[1, 2, 3]]))
    assert graphs


def test_text_can_be_longer_than_the_context() -> None:
    assert len(text(max_new_tokens=100)) == 100  # the context is 32
    assert len(text(prompt=list(range(60)), max_new_tokens=5)) == 5


def test_padding_rows_are_never_drawn() -> None:
    tokens = [t for row in text(num_tokens=4, num_samples=8) for t in row]
    assert max(t for t in tokens if t is not None) < 4


def test_a_sample_stops_at_the_end_of_text() -> None:
    rows = text(num_tokens=4, eot=0, num_samples=4, max_new_tokens=200)
    assert len(rows) < 200
    for sample in zip(*rows, strict=True):
        assert 0 not in sample
        ended = [i for i, token in enumerate(sample) if token is None]
        assert ended == list(range(len(sample) - len(ended), len(sample)))


@pytest.mark.parametrize("samples", [1, 3])
def test_each_row_has_one_token_for_each_sample(samples: int) -> None:
    assert all(len(row) == samples for row in text(num_samples=samples))


def test_an_empty_prompt_is_the_end_of_text_or_a_line_feed_or_the_first_character() -> None:
    recipe = load(CONFIGS / "quickstart.yaml")
    tokenizers = (ByteTokenizer(), CharTokenizer("\tA\n"), CharTokenizer("ACGT"))
    assert [prompt_tokens("", tokenizer, recipe) for tokenizer in tokenizers] == [[256], [1], [0]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_one_line(value: float) -> None:
    config = SampleConfig()
    with pytest.raises(NonFiniteLoss, match="diverged"):
        draw(torch.tensor([[1.0, value]]), config, torch.Generator())
