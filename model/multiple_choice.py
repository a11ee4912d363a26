"""Multiple-choice questions, for `model.evaluate --multiple-choice FILE`.

A line of the file is a JSON object with `ctx`, `endings` and `label` as in HellaSwag
(arXiv:1905.07830), or `context`, `choices` and `answer`. The answer is the index of the right
choice, as a number or a string.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from corpus import DataError
from corpus.tokenizers import Tokenizer
from model.gpt import GPT

SHOWN = 5  # invalid lines that an error names
EXAMPLE = '{"ctx": "A cat", "endings": ["sat.", "flew."], "label": 0}'


class InvalidQuestions(DataError):
    """Lines of the file are not questions; the text names them."""


class Question(NamedTuple):
    """Tokens of the context and of each ending, and the index of the right ending."""

    context: list[int]
    endings: list[list[int]]
    answer: int


def read_questions(path: Path, tokenizer: Tokenizer, block_size: int) -> list[Question]:
    """Read every line of ``path`` that is not blank.

    Raises InvalidQuestions with the invalid lines, and OSError if the file cannot be read.
    """
    questions, invalid = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                questions.append(_question(json.loads(line), tokenizer, block_size))
            except (ValueError, RecursionError) as error:  # DataError too
                invalid.append(f"\n  line {number}: {error}")
    if invalid:
        more = f"\n  and {len(invalid) - SHOWN} more" if len(invalid) > SHOWN else ""
        raise InvalidQuestions(
            f"{path}: {len(invalid)} lines are not questions:{''.join(invalid[:SHOWN])}{more}\n"
            f"a line looks like {EXAMPLE}; fix or delete them"
        )
    if not questions:
        raise InvalidQuestions(f"{path}: no questions; each line is one, as JSON")
    return questions


def _question(tree: Any, tokenizer: Tokenizer, block_size: int) -> Question:
    if not isinstance(tree, dict):
        raise ValueError("not a JSON object")
    names = ("ctx", "endings", "label") if "endings" in tree else ("context", "choices", "answer")
    if missing := [name for name in names if name not in tree]:
        raise ValueError(f"missing '{missing[0]}'")
    context, endings, answer = (tree[name] for name in names)
    if not isinstance(context, str):
        raise ValueError(f"'{names[0]}' is not a string")
    texts = [e for e in endings if isinstance(e, str) and e] if isinstance(endings, list) else []
    if len(texts) < 2 or texts != endings:
        raise ValueError(f"'{names[1]}' is not a list of two or more strings")
    if str(answer) not in map(str, range(len(texts))):
        raise ValueError(f"'{names[2]}' is {answer!r}, not a number from 0 to {len(texts) - 1}")
    if not context and tokenizer.eot is None:
        problem = f"tokenizer {tokenizer.name} has no token to start from"
        raise ValueError(f"'{names[0]}' is empty, and {problem}")
    # Add a space between the two if there is none: GPT-2's tokens of words include it.
    joint = " " if context and not context[-1].isspace() else ""
    read = tokenizer.encode(context).tolist() or [tokenizer.eot]
    tokens = [tokenizer.encode(e if e[0].isspace() else joint + e).tolist() for e in texts]
    if max(map(len, tokens)) > block_size:
        raise ValueError(f"an ending has more tokens than the network's context of {block_size}")
    return Question(read, tokens, int(answer))


def accuracies(
    questions: list[Question], losses: list[list[tuple[float, int]]]
) -> dict[str, float | int | None]:
    """Return the share of questions whose right ending has the lowest loss, and its standard error.

    ``losses`` has, for each question and ending, the summed loss and the number of tokens.
    ``accuracy`` compares the sums, ``accuracy_normalised`` the means over the tokens, as the
    HellaSwag figures of nanoGPT and llm.c do.
    """
    n = len(questions)
    result: dict[str, float | int | None] = {"questions": n}
    for name, per_token in (("accuracy", False), ("accuracy_normalised", True)):
        scores = [[loss / (count if per_token else 1) for loss, count in of] for of in losses]
        right = (s.index(min(s)) == q.answer for q, s in zip(questions, scores, strict=True))
        share = sum(right) / n
        result[name] = share
        result[f"{name}_stderr"] = math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else None
    return result


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
