"""Questions of multiple choice, and what share of them was answered right. model/choices.py answers them.

A line of the file is a JSON object: `ctx`, `endings`, `label` as in HellaSwag (arXiv:1905.07830), or `context`,
`choices`, `answer`; the answer is the right one's number from 0, also as a string.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus import DataError
from corpus.tokenizers import Tokenizer

SHOWN = 5  # wrong lines that an error names


class WrongLines(DataError):
    """Lines of the file are no questions; the text names them."""


@dataclass(frozen=True)
class Question:
    """Tokens of the context and of each ending, and the number of the right one."""

    context: list[int]
    endings: list[list[int]]
    answer: int


def read_questions(path: Path, tokenizer: Tokenizer, block_size: int) -> list[Question]:
    """Every line of ``path`` that is not blank; WrongLines with all that are wrong, OSError where it is not there."""
    questions, wrong = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                questions.append(_question(json.loads(line), tokenizer, block_size))
            except (ValueError, DataError) as error:
                wrong.append(f"line {number}: {error}")
    if wrong:
        more = f"\n  and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise WrongLines(
            f"{path}: {len(wrong)} lines are no questions:\n  "
            + "\n  ".join(wrong[:SHOWN])
            + more
            + "\n"
            'a line is {"ctx": "A cat", "endings": ["sat.", "flew."], "label": 0}; mend or delete them'
        )
    if not questions:
        raise WrongLines(f"{path}: holds no question; each line is one, as JSON")
    return questions


def _question(tree: Any, tokenizer: Tokenizer, block_size: int) -> Question:
    if not isinstance(tree, dict):
        raise ValueError("is no JSON object")
    names = ("ctx", "endings", "label") if "endings" in tree else ("context", "choices", "answer")
    if missing := [name for name in names if name not in tree]:
        raise ValueError(f"has no '{missing[0]}'")
    context, endings, answer = (tree[name] for name in names)
    if not isinstance(context, str):
        raise ValueError(f"'{names[0]}' is no text")
    if (
        not isinstance(endings, list)
        or len(endings) < 2
        or not all(isinstance(e, str) and e for e in endings)
    ):
        raise ValueError(f"'{names[1]}' is no list of two texts or more")
    if str(answer) not in map(str, range(len(endings))):
        raise ValueError(f"'{names[2]}' is {answer!r}, not a number from 0 to {len(endings) - 1}")
    if not context and tokenizer.eot is None:
        raise ValueError(
            f"'{names[0]}' is empty, and tokenizer {tokenizer.name} has nothing to begin with"
        )
    # A text without a space between the two gets one: GPT-2's tokens of words hold the space before them.
    joint = " " if context and not context[-1].isspace() else ""
    read = tokenizer.encode(context).tolist() or [tokenizer.eot]
    tokens = [tokenizer.encode(e if e[0].isspace() else joint + e).tolist() for e in endings]
    if max(map(len, tokens)) > block_size:
        raise ValueError(f"has an ending of more tokens than the network's context of {block_size}")
    return Question(read, tokens, int(answer))


def accuracies(
    questions: list[Question], losses: list[list[tuple[float, int]]]
) -> dict[str, float | int | None]:
    """The share of questions whose right ending has the lowest loss, with its standard error.

    ``losses``: for each question and ending its loss, summed, and its tokens. ``accuracy`` compares the sums,
    ``accuracy_normalised`` the means over the tokens, as nanoGPT's and llm.c's HellaSwag figures do.
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
