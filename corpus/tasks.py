"""Multiple-choice questions: from a file, or of a task by name (HellaSwag, the 22 of CORE).

A line of a file is a JSON object with `ctx`, `endings` and `label` as in HellaSwag
(arXiv:1905.07830), or `context`, `choices` and `answer`. The answer is the index of the right
choice, as a number or a string.

CORE (arXiv:2406.11794) is the mean over its tasks of the accuracy, centered so that guessing is 0.
Examples of the same task precede each question, drawn by its number, as in nanochat.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

import yaml

from corpus import DataError
from corpus.download import download
from corpus.tokenizers import Tokenizer
from job.pretrained import TASKS
from job.recipe import Recipe
from job.step_folders import sha256

MAX_SHOWN = 5  # invalid lines that an error names
EXAMPLE = '{"ctx": "A cat", "endings": ["sat.", "flew."], "label": 0}'


class InvalidQuestions(DataError):
    """Lines of the file are not questions; the text names them."""


class Question(NamedTuple):
    """Tokens of the context and of each ending, and the index of the right ending.

    Only the last ``scored`` tokens of an ending count; None: all of it.
    """

    context: list[int]
    endings: list[list[int]]
    answer: int
    scored: int | None = None


class Score(NamedTuple):
    """The loss of an ending: summed in nats, and its number of tokens."""

    loss: float
    tokens: int
    is_greedy: bool = False  # each of its tokens is the network's most likely one


def read_questions(path: Path, tokenizer: Tokenizer, block_size: int) -> list[Question]:
    """Read every line of ``path`` that is not blank.

    Raises InvalidQuestions with the invalid lines, and OSError if the file cannot be read.
    """
    questions, invalid = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                questions.append(_read_question(json.loads(line), tokenizer, block_size))
            except (ValueError, RecursionError) as error:  # DataError too
                invalid.append(f"\n  line {number}: {error}")
    if invalid:
        more = f"\n  and {len(invalid) - MAX_SHOWN} more" if len(invalid) > MAX_SHOWN else ""
        raise InvalidQuestions(
            f"{path}: {len(invalid)} lines are not questions:{''.join(invalid[:MAX_SHOWN])}{more}\n"
            f"a line looks like {EXAMPLE}; fix or delete them"
        )
    if not questions:
        raise InvalidQuestions(f"{path}: no questions; each line is one, as JSON")
    return questions


def _read_question(tree: Any, tokenizer: Tokenizer, block_size: int) -> Question:
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
    # Add a space between the two if it is missing: GPT-2's tokens of words include it.
    joint = " " if context and not context[-1].isspace() else ""
    read = tokenizer.encode(context).tolist() or [tokenizer.eot]
    tokens = [tokenizer.encode(e if e[0].isspace() else joint + e).tolist() for e in texts]
    if max(map(len, tokens)) > block_size:
        raise ValueError(f"an ending has more tokens than the network's context of {block_size}")
    return Question(read, tokens, int(answer))


def accuracies(
    questions: list[Question], scores: list[list[Score]]
) -> dict[str, float | int | None]:
    """Return the share of questions whose right ending has the lowest loss, and its standard error.

    ``scores`` has one score for each question and ending. ``accuracy`` compares the sums,
    ``accuracy_normalised`` the means over the tokens, as the HellaSwag figures of nanoGPT and
    llm.c do.
    """
    n = len(questions)
    result: dict[str, float | int | None] = {"questions": n}
    for name, per_token in (("accuracy", False), ("accuracy_normalised", True)):
        losses = [
            [loss / (count if per_token else 1) for loss, count, *_ in each] for each in scores
        ]
        right = (s.index(min(s)) == q.answer for q, s in zip(questions, losses, strict=True))
        share = sum(right) / n
        result[name] = share
        result[f"{name}_stderr"] = math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else None
    return result


BUNDLE = "eval_bundle"
ORDER_SEED = 1337  # of a task's questions, before the first ones are taken
EXAMPLE_SEED = 1234  # of a question's examples, plus its number


Measure = Callable[[list[Question]], list[list[Score]]]  # the network's score of each ending


class Task(NamedTuple):
    """The questions of one task, and the accuracy of guessing."""

    name: str
    questions: list[Question]
    baseline: float


def load_tasks(
    name: str, cache: Path, tokenizer: Tokenizer, block_size: int, limit: int | None = None
) -> list[Task]:
    """Return the tasks that ``name`` means, with at most ``limit`` questions each.

    Downloads the data if it is missing. Raises DataError.
    """
    path = fetch(name, cache)
    if name != "core":
        return [Task(name, read_questions(path, tokenizer, block_size)[:limit], 0.25)]
    try:
        with ZipFile(path) as bundle:
            return list(_core(bundle, tokenizer, limit))
    except (BadZipFile, LookupError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not the data of CORE: {error}; delete it") from None


def fetch(name: str, cache: Path) -> Path:
    """Return the task's file in the cache, downloading it first if it is missing or changed."""
    data = TASKS[name]
    path = cache / data.file

    def check(file: Path) -> None:
        if sha256(file) != data.sha256:
            raise DataError(f"its SHA-256 is {sha256(file)}, expected {data.sha256}")

    if not path.is_file() or sha256(path) != data.sha256:
        download(data.url, path, check=check)
    return path


def scores(name: str, tasks: Sequence[Task], measure: Measure) -> dict[str, float | int | None]:
    """Return the results of ``name``; ``measure`` returns the network's loss of each ending."""
    if name != "core":
        return accuracies(tasks[0].questions, measure(tasks[0].questions))
    accuracy_by_task: dict[str, float | int | None] = {}
    centered = []
    for task in tasks:
        measured = measure(task.questions)
        if len(task.questions[0].endings) == 1:
            accuracy = sum(ending[0].is_greedy for ending in measured) / len(measured)
        else:
            accuracy = float(accuracies(task.questions, measured)["accuracy_normalised"] or 0.0)
        accuracy_by_task[task.name] = accuracy
        centered.append((accuracy - task.baseline) / (1 - task.baseline))
    questions = sum(len(task.questions) for task in tasks)
    return {"core": sum(centered) / len(centered), "questions": questions, **accuracy_by_task}


def recipe_tasks(recipe: Recipe, cache: Path, tokenizer: Tokenizer) -> dict[str, list[Task]]:
    """Return the tasks that a training run measures at each evaluation."""
    block, limit = recipe.model.block_size, recipe.train.eval_task_questions
    names = recipe.train.eval_tasks
    return {name: load_tasks(name, cache, tokenizer, block, limit) for name in names}


def main_scores(tasks: dict[str, list[Task]], measure: Measure) -> dict[str, float]:
    """Return one number for each task: the one that a curve shows and that is published."""
    results = {name: scores(name, parts, measure) for name, parts in tasks.items()}
    keys = {name: "core" if name == "core" else "accuracy_normalised" for name in tasks}
    return {name: float(results[name][key] or 0.0) for name, key in keys.items()}


def _core(bundle: ZipFile, tokenizer: Tokenizer, limit: int | None) -> Iterator[Task]:
    rows = csv.DictReader(io.StringIO(bundle.read(f"{BUNDLE}/eval_meta_data.csv").decode()))
    baselines = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in rows}
    for task in yaml.safe_load(bundle.read(f"{BUNDLE}/core.yaml"))["icl_tasks"]:
        lines = bundle.read(f"{BUNDLE}/eval_data/{task['dataset_uri']}").decode().splitlines()
        items = [json.loads(line) for line in lines if line.strip()]
        random.Random(ORDER_SEED).shuffle(items)
        shots, gap = task["num_fewshot"][0], task.get("continuation_delimiter", " ")
        items = items[:limit]
        questions = [
            _question(task["icl_task_type"], item, _examples(items, number, shots), gap, tokenizer)
            for number, item in enumerate(items)
        ]
        yield Task(task["label"], questions, baselines[task["label"]])


def _examples(items: list[Any], number: int, shots: int) -> list[Any]:
    others = [*items[:number], *items[number + 1 :]]
    return random.Random(EXAMPLE_SEED + number).sample(others, min(shots, len(others)))


def _question(
    kind: str, item: Any, examples: list[Any], gap: str, tokenizer: Tokenizer
) -> Question:
    """Return one question; the endings of `schema` differ in their context alone."""
    match kind:
        case "multiple_choice":
            parts = [(e["query"], e["choices"][e["gold"]]) for e in examples]
            prompts = [(item["query"], choice) for choice in item["choices"]]
        case "schema":
            parts = [(e["context_options"][e["gold"]], e["continuation"]) for e in examples]
            prompts = [(context, item["continuation"]) for context in item["context_options"]]
        case "language_modeling":
            parts = [(e["context"].strip(), e["continuation"]) for e in examples]
            prompts = [(item["context"].strip(), item["continuation"])]
        case _:
            raise ValueError(f"unknown kind of task '{kind}'")
    before = "".join(f"{start}{gap}{end}\n\n" for start, end in parts)
    texts = [f"{before}{start}{gap}{end}" for start, end in prompts]
    if kind == "language_modeling":
        texts.append(f"{before}{prompts[0][0]}{gap}".strip())
    start = [] if tokenizer.eot is None else [tokenizer.eot]
    rows = [[*start, *tokenizer.encode(text).tolist()] for text in texts]
    common = _common(rows)
    if kind == "schema":
        suffix = _common([row[::-1] for row in rows])
        return Question([], rows, item["gold"], scored=suffix)
    if kind == "language_modeling":
        del rows[-1]
    return Question(rows[0][:common], [row[common:] for row in rows], item.get("gold", 0))


def _common(rows: list[list[int]]) -> int:
    """Return the number of first tokens that all rows share."""
    pairs = enumerate(zip(*rows, strict=False))
    shortest = min(map(len, rows))
    return next((at for at, tokens in pairs if len({*tokens}) > 1), shortest)
