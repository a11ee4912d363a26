"""Sampling: temperature, top-k and top-p, and generation with the cache."""

from __future__ import annotations

import pytest
import torch

from inference.engine import Engine, Request, draw, generate
from job.exit_status import NonFiniteLoss
from job.recipe import SampleConfig
from tests.model.test_gpt import network

LOGITS = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).log_softmax(-1)


UNLIMITED = {"temperature": 1.0, "top_k": None}


def draw_tokens(**settings: object) -> set[int]:
    """Return the different tokens of 400 draws."""
    config = SampleConfig(**{**UNLIMITED, **settings})  # type: ignore[arg-type]
    generators = [torch.Generator().manual_seed(0)] * 400
    return set(draw(LOGITS.expand(400, -1), config, generators).tolist())


def test_temperature_zero_selects_the_most_likely() -> None:
    assert draw_tokens(temperature=0) == {3}


def test_all_tokens_are_drawn_without_limits() -> None:
    assert draw_tokens() == {0, 1, 2, 3}


def test_top_k_keeps_the_k_most_likely() -> None:
    assert draw_tokens(top_k=2) == {2, 3}
    assert draw_tokens(top_k=1) == {3}
    assert draw_tokens(top_k=99) == {0, 1, 2, 3}


def test_top_p_keeps_the_fewest_that_reach_p() -> None:
    # The probabilities are 0.032, 0.087, 0.237 and 0.644.
    assert draw_tokens(top_p=0.6) == {3}
    assert draw_tokens(top_p=0.7) == {2, 3}
    assert draw_tokens(top_p=0.9) == {1, 2, 3}
    assert draw_tokens(top_p=1.0) == {0, 1, 2, 3}


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


def test_same_seed_gives_the_same_text() -> None:
    assert text() == text()
    assert text() != text(seed=6)


@pytest.mark.parametrize("shape", [{}, WINDOWS, {"smear": 3}], ids=["full", "windows", "smear"])
def test_greedy_text_is_the_same_without_the_cache(shape: dict[str, object]) -> None:
    got = [row[0] for row in text(shape, temperature=0)]
    made, tokens = network(**shape), [1, 2, 3]
    for _ in range(20):
        tokens.append(int(made(torch.tensor([tokens]))[0, -1].argmax()))
    assert got == tokens[3:]


@pytest.mark.parametrize(
    "shape",
    [{"variant": "gpt2"}, {}, WINDOWS | {"smear": 3}],
    ids=["gpt2", "full", "windows"],
)
def test_text_does_not_depend_on_concurrent_requests(shape: dict[str, object]) -> None:
    made = network(**shape).eval()
    texts = [
        ([1, 2, 3], SampleConfig(max_new_tokens=60, temperature=1.0, top_k=None), 5),
        ([4], SampleConfig(max_new_tokens=9, temperature=0.5, top_p=0.9), 6),
        (list(range(60)), SampleConfig(max_new_tokens=40, temperature=0.0), 7),
        ([4], SampleConfig(max_new_tokens=30, temperature=0.7), 8),
        ([9, 8], SampleConfig(max_new_tokens=25, temperature=0.0), 9),
    ]

    def together(engine: Engine, chosen: list[int]) -> list[Request]:
        """Add one request in each step, so that they are at different positions."""
        made, waiting = [], list(chosen)
        while waiting or engine.is_busy:
            if waiting:
                made.append(engine.add(*texts[waiting.pop(0)]))
            engine.step()
        return made

    alone = [together(Engine(made, 128, (), 1), [n])[0].tokens for n in range(5)]
    found = together(Engine(made, 128, (), slots=3), [0, 1, 2, 3, 4])  # two wait for a slot
    assert [request.tokens for request in found] == alone
    assert [request.finish for request in found] == ["length"] * 5


def test_a_cancelled_request_frees_its_slot() -> None:
    engine = Engine(network().eval(), 128, (), slots=1)
    first, second = (engine.add([1], SampleConfig(max_new_tokens=5), seed) for seed in (1, 2))
    engine.step()
    first.is_cancelled = True
    assert engine.step() == [second]
    assert len(first.tokens) == 2


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_scores_are_an_error_of_one_line(value: float) -> None:
    config = SampleConfig()
    with pytest.raises(NonFiniteLoss, match="diverged"):
        draw(torch.tensor([[1.0, value]]), config, [torch.Generator()])
