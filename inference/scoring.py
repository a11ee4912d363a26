"""Score the endings of multiple-choice questions, in batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from corpus.tasks import Question, Score
from inference.engine import Network

# Sequences in a batch. Few, because nothing is compiled and all logits are in memory: 1.6 GB in
# float32 for 8 x 1,024 tokens.
BATCH_SIZE = 8


@torch.no_grad()
def ending_losses(
    network: Network, questions: list[Question], batch_size: int = BATCH_SIZE
) -> list[list[Score]]:
    """Return the score of each ending of each question.

    Endings of similar length share a batch. A text longer than the network's context is cut at
    its start.
    """
    max_tokens = network.config.block_size + 1
    texts = [
        (
            number,
            which,
            (question.context + ending)[-max_tokens:],
            min(question.scored or len(ending), max_tokens - 1),
        )
        for number, question in enumerate(questions)
        for which, ending in enumerate(question.endings)
    ]
    texts.sort(key=lambda text: len(text[2]))
    results = [[Score(0.0, 0)] * len(question.endings) for question in questions]
    was_training = network.training
    network.train(False)
    for batch in (texts[i : i + batch_size] for i in range(0, len(texts), batch_size)):
        tokens, lengths = [tokens for _, _, tokens, _ in batch], [length for *_, length in batch]
        for (number, which, *_), score in zip(
            batch, _scores(network, tokens, lengths), strict=True
        ):
            results[number][which] = score
    network.train(was_training)
    return results


def _scores(network: Network, texts: list[list[int]], lengths: list[int]) -> list[Score]:
    """Return each text's score over its last tokens; a causal network does not see padding."""
    ends_B1 = torch.tensor([[len(tokens)] for tokens in texts])
    ids_BT = pad_sequence([torch.tensor(tokens) for tokens in texts], batch_first=True)
    position_T = torch.arange(ids_BT.size(1))
    is_ending_BT = (position_T < ends_B1) & (position_T >= ends_B1 - torch.tensor(lengths)[:, None])
    ids_BT = ids_BT.to(network.device)
    mask_BT = is_ending_BT[:, 1:].to(ids_BT.device)
    # Logits of the endings only: those of all positions would take most of the memory.
    logits_NV = network.logits(network.hidden(ids_BT[:, :-1])[mask_BT])
    targets_N = ids_BT[:, 1:][mask_BT]
    losses_N = F.cross_entropy(logits_NV, targets_N, reduction="none").cpu().double()
    greedy_N = (logits_NV.argmax(-1) == targets_N).cpu()
    parts = zip(torch.split(losses_N, lengths), torch.split(greedy_N, lengths), strict=True)
    return [Score(float(loss.sum()), len(loss), bool(greedy.all())) for loss, greedy in parts]
