"""Writing text: one token after another, with the keys and values of what was read kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from job.recipe import SampleConfig
from model.gpt import GPT


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from the logits."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    @classmethod
    def of(cls, config: SampleConfig) -> Sampling:
        return cls(config.temperature, config.top_k, config.top_p)

    def draw(self, logits_BV: Tensor, generator: torch.Generator) -> Tensor:
        """One token for each row: (B,). Temperature 0 takes the most likely."""
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        logits_BV = logits_BV / self.temperature
        if self.top_k is not None and self.top_k < logits_BV.size(-1):
            kth = logits_BV.topk(self.top_k).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < kth, -torch.inf)
        if self.top_p is not None:
            ordered, index = logits_BV.sort(descending=True)
            probabilities = ordered.softmax(-1)
            # A token stays while those before it fall short of top_p; the first always stays.
            beyond = probabilities.cumsum(-1) - probabilities >= self.top_p
            logits_BV = logits_BV.masked_fill(beyond.scatter(-1, index, beyond), -torch.inf)
        return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator).squeeze(1)


@torch.no_grad()
def generate(
    network: GPT,
    prompt: list[int],
    num_samples: int,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
    num_tokens: int,
    eot: int | None = None,
) -> Iterator[list[int | None]]:
    """Yield, for each new position, one token for each sample; None once a sample has ended with ``eot``.

    ``num_tokens`` is the tokenizer's vocabulary: padding rows of the network are never drawn.
    A text longer than the network's context goes on from its last half.
    """
    device = network.wte.weight.device
    block = network.config.block_size
    generator = torch.Generator(device).manual_seed(seed)
    was_training = network.training
    network.eval()
    text_BT = torch.tensor([prompt] * num_samples, device=device)[:, -block:]
    cache, position = network.new_cache(num_samples, block), 0
    fresh_BT = text_BT
    ended = torch.zeros(num_samples, dtype=torch.bool, device=device)
    for _ in range(max_new_tokens):
        if position + fresh_BT.size(1) > block:  # the context is full: read its last half anew
            fresh_BT, position = text_BT[:, -(block // 2) :], 0
        logits_BV = network.logits(network.hidden(fresh_BT, cache, position)[:, -1:])[:, 0, :num_tokens]
        position += fresh_BT.size(1)
        next_B = sampling.draw(logits_BV, generator)
        if eot is not None:
            ended |= next_B == eot
            if bool(ended.all()):
                break
        done = ended.tolist()
        yield [None if done[i] else token for i, token in enumerate(next_B.tolist())]
        fresh_BT = next_B[:, None]
        text_BT = torch.cat((text_BT, fresh_BT), dim=1)[:, -block:]
    network.train(was_training)
