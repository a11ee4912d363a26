"""Losses of the endings of multiple-choice questions, for `model.evaluate --multiple-choice FILE`."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from corpus.questions import Question
from model.gpt import GPT


@torch.no_grad()
def ending_losses(
    network: GPT, questions: list[Question], batch_size: int
) -> list[list[tuple[float, int]]]:
    """Return for each ending of each question its summed loss in nats and its number of tokens.

    Endings of similar length share a batch. A text longer than the network's context is cut at
    its start.
    """
    max_tokens = network.config.block_size + 1
    texts = [
        (number, which, (question.context + ending)[-max_tokens:], len(ending))
        for number, question in enumerate(questions)
        for which, ending in enumerate(question.endings)
    ]
    texts.sort(key=lambda text: len(text[2]))
    results: list[list[tuple[float, int]]] = [[(0.0, 0)] * len(q.endings) for q in questions]
    network.eval()
    for batch in (texts[i : i + batch_size] for i in range(0, len(texts), batch_size)):
        tokens, lengths = [tokens for _, _, tokens, _ in batch], [length for *_, length in batch]
        losses = _summed_losses(network, tokens, lengths)
        for (number, which, _, length), loss in zip(batch, losses, strict=True):
            results[number][which] = (loss, length)
    return results


def _summed_losses(network: GPT, texts: list[list[int]], lengths: list[int]) -> list[float]:
    """Return each text's loss over its last tokens.

    Texts are padded on the right, which a causal network does not see.
    """
    rows_BT = np.zeros((len(texts), max(map(len, texts))), dtype=np.int64)
    counted_BT = np.zeros(rows_BT.shape, dtype=bool)
    for row, (tokens, length) in enumerate(zip(texts, lengths, strict=True)):
        rows_BT[row, : len(tokens)] = tokens
        counted_BT[row, len(tokens) - length : len(tokens)] = True
    ids_BT = torch.from_numpy(rows_BT).to(network.wte.weight.device)
    mask_BT = torch.from_numpy(counted_BT[:, 1:]).to(ids_BT.device)
    # Logits of the endings only: those of all positions would take most of the memory.
    logits_NV = network.logits(network.hidden(ids_BT[:, :-1])[mask_BT])
    losses_N = F.cross_entropy(logits_NV, ids_BT[:, 1:][mask_BT], reduction="none").cpu().double()
    return [float(part.sum()) for part in torch.split(losses_N, lengths)]
