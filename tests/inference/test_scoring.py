"""Multiple choice: batched losses equal those of one ending at a time."""

from __future__ import annotations

import random

import pytest
import torch

from corpus.tasks import Question
from inference.scoring import ending_losses
from model.gpt import GPT
from tests.model.test_gpt import network


def one_by_one(net: GPT, context: list[int], ending: list[int]) -> float:
    """Compute the ending's loss from the logits of its positions, without batch and padding."""
    text = (context + ending)[-(net.config.block_size + 1) :]
    with torch.no_grad():
        logits = net(torch.tensor([text[:-1]]))[0].double()
    return sum(
        float(torch.logsumexp(logits[i - 1], 0) - logits[i - 1, text[i]])
        for i in range(len(text) - len(ending), len(text))
    )


@pytest.mark.parametrize("variant", ["gpt2", "modern"])
def test_batches_agree_with_one_ending_at_a_time(variant: str) -> None:
    net = network(variant)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)  # makes all logits different
    rng, block, vocab = random.Random(0), net.config.block_size, net.vocab_size
    questions = [
        Question(
            [
                rng.randrange(vocab) for _ in range(rng.randint(1, 2 * block))
            ],  # some longer than the context
            [
                [rng.randrange(vocab) for _ in range(rng.randint(1, block))]
                for _ in range(rng.choice([2, 4]))
            ],
            rng.randrange(2),
        )
        for _ in range(13)
    ]
    brute = [[(one_by_one(net, q.context, e), len(e)) for e in q.endings] for q in questions]
    for rows in (1, 5, 64):
        found = ending_losses(net, questions, rows)
        assert [[score.tokens for score in of] for of in found] == [
            [n for _, n in of] for of in brute
        ]
        for of, expected in zip(found, brute, strict=True):
            assert [score.loss for score in of] == pytest.approx(
                [loss for loss, _ in expected], rel=1e-4
            )
