"""How likely the network finds each ending of a question of multiple choice: `model.evaluate --choices FILE`."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from corpus.questions import Question
from model.gpt import GPT


@torch.no_grad()
def ending_losses(network: GPT, questions: list[Question], rows: int) -> list[list[tuple[float, int]]]:
    """For each question and ending its loss, summed in nats, and its tokens. ``rows``: endings in a batch.

    Endings of like length go together. Of a text longer than the network's context the last part is read.
    """
    longest = network.config.block_size + 1
    texts = [
        (number, which, (question.context + ending)[-longest:], len(ending))
        for number, question in enumerate(questions)
        for which, ending in enumerate(question.endings)
    ]
    texts.sort(key=lambda text: len(text[2]))
    found: list[list[tuple[float, int]]] = [[(0.0, 0)] * len(question.endings) for question in questions]
    network.eval()
    for batch in (texts[i : i + rows] for i in range(0, len(texts), rows)):
        losses = _sums(network, [tokens for _, _, tokens, _ in batch], [length for *_, length in batch])
        for (number, which, _, length), loss in zip(batch, losses, strict=True):
            found[number][which] = (loss, length)
    return found


def _sums(network: GPT, texts: list[list[int]], lengths: list[int]) -> list[float]:
    """Each text's loss over its last tokens. It is filled up on its right, which a causal network can't see."""
    rows_BT = np.zeros((len(texts), max(map(len, texts))), dtype=np.int64)
    counted_BT = np.zeros(rows_BT.shape, dtype=bool)
    for row, (tokens, length) in enumerate(zip(texts, lengths, strict=True)):
        rows_BT[row, : len(tokens)] = tokens
        counted_BT[row, len(tokens) - length : len(tokens)] = True
    ids_BT = torch.from_numpy(rows_BT).to(network.wte.weight.device)
    mask_BT = torch.from_numpy(counted_BT[:, 1:]).to(ids_BT.device)
    # The logits of the endings alone: those of all positions would be most of the memory.
    logits_NV = network.logits(network.hidden(ids_BT[:, :-1])[mask_BT])
    losses_N = F.cross_entropy(logits_NV, ids_BT[:, 1:][mask_BT], reduction="none").cpu().double()
    return [float(part.sum()) for part in torch.split(losses_N, lengths)]
