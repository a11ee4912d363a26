"""Multiple-choice questions and the accuracy of the answers, which the model package computes.

A line of the file is a JSON object with `ctx`, `endings` and `label` as in HellaSwag
(arXiv:1905.07830), or `context`, `choices` and `answer`. The answer is the index of the right
choice, as a number or a string.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus import DataError
from corpus.tokenizers import Tokenizer

SHOWN = 5  # invalid lines that an error names


class InvalidQuestions(DataError):
    """Lines of the file are not questions; the text names them."""


@dataclass(frozen=True)
class Question:
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
                invalid.append(f"line {number}: {error}")
    if invalid:
        more = f"\n  and {len(invalid) - SHOWN} more" if len(invalid) > SHOWN else ""
        raise InvalidQuestions(
            f"{path}: {len(invalid)} lines are not questions:\n  "
            + "\n  ".join(invalid[:SHOWN])
            + more
            + "\n"
            'a line looks like {"ctx": "A cat", "endings": ["sat.", "flew."], "label": 0}; '
            "fix or delete them"
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
    if (
        not isinstance(endings, list)
        or len(endings) < 2
        or not all(isinstance(e, str) and e for e in endings)
    ):
        raise ValueError(f"'{names[1]}' is not a list of two or more strings")
    if str(answer) not in map(str, range(len(endings))):
        raise ValueError(f"'{names[2]}' is {answer!r}, not a number from 0 to {len(endings) - 1}")
    if not context and tokenizer.eot is None:
        raise ValueError(
            f"'{names[0]}' is empty, and tokenizer {tokenizer.name} has no token to start from"
        )
    # Add a space between the two if there is none: GPT-2's tokens of words include it.
    joint = " " if context and not context[-1].isspace() else ""
    read = tokenizer.encode(context).tolist() or [tokenizer.eot]
    tokens = [tokenizer.encode(e if e[0].isspace() else joint + e).tolist() for e in endings]
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
    result: dict[str, float | int | None] = {"questions": len(questions)}
    for name, per_token in (("accuracy", False), ("accuracy_normalised", True)):
        right = [
            min(range(len(of)), key=lambda i: of[i][0] / (of[i][1] if per_token else 1))
            == question.answer
            for question, of in zip(questions, losses, strict=True)
        ]
        share, n = sum(right) / len(right), len(right)
        result[name] = share
        result[f"{name}_stderr"] = math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else None
    return result
