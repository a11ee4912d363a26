"""Multiple-choice questions: both formats, invalid lines, accuracies."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from corpus.tasks import InvalidQuestions, Question, accuracies, read_questions
from corpus.tokenizers import ByteTokenizer, CharTokenizer

BYTES = ByteTokenizer()


def test_accuracies_and_their_standard_errors() -> None:
    # The short ending has the smaller sum, the long one the smaller loss per token.
    losses = [
        [(3.0, 1), (8.0, 4)],
        [(3.0, 1), (8.0, 4)],
        [(1.0, 1), (9.0, 4)],
        [(5.0, 1), (1.0, 1)],
    ]
    questions = [Question([1], [[1], [2]], answer) for answer in (0, 1, 0, 1)]
    found = accuracies(questions, losses)
    assert (found["questions"], found["accuracy"], found["accuracy_normalised"]) == (4, 0.75, 0.75)
    assert found["accuracy_stderr"] == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert accuracies(questions[1:2], losses[1:2]) == {
        "questions": 1, "accuracy": 0.0, "accuracy_stderr": None,
        "accuracy_normalised": 1.0, "accuracy_normalised_stderr": None,
    }  # fmt: skip


def test_both_formats_of_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    lines = [
        {"ctx": "A cat", "endings": ["sat.", " flew."], "label": "1", "ind": 4},
        {"context": "A: ", "choices": ["x", "y"], "answer": 0},
        {"context": "", "choices": ["x", "y"], "answer": 0},
    ]
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    one, two, three = read_questions(path, BYTES, 32)
    assert [BYTES.decode(ending) for ending in one.endings] == [" sat.", " flew."]
    assert (BYTES.decode(one.context), one.answer) == ("A cat", 1)
    assert [BYTES.decode(ending) for ending in two.endings] == ["x", "y"]
    assert three.context == [BYTES.eot]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "Expecting"),
        ("[1]", "not a JSON object"),
        ('{"ctx": "a", "endings": ["b", "c"]}', "missing 'label'"),
        ('{"context": "a", "choices": ["b", "c"]}', "missing 'answer'"),
        ('{"ctx": 1, "endings": ["b", "c"], "label": 0}', "'ctx' is not a string"),
        ('{"ctx": "a", "endings": ["b"], "label": 0}', "'endings' is not a list"),
        ('{"ctx": "a", "endings": ["b", ""], "label": 0}', "'endings' is not a list"),
        (
            '{"ctx": "a", "endings": ["b", "c"], "label": ""}',
            "'label' is '', not a number from 0 to 1",
        ),
        ('{"ctx": "a", "endings": ["b", "c"], "label": 2}', "'label' is 2"),
        (
            '{"ctx": "a", "endings": ["b", "ccccccccc"], "label": 0}',
            "more tokens than the network's context of 8",
        ),
    ],
)
def test_an_invalid_line_is_reported_with_its_number(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"ctx": "a", "endings": ["b", "c"], "label": 0}\n\n' + line + "\n")
    with pytest.raises(InvalidQuestions, match="line 3: ") as caught:
        read_questions(path, BYTES, 8)
    assert why in str(caught.value)


def test_a_character_that_the_tokenizer_lacks_makes_a_line_invalid(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(
        '{"ctx": "a", "endings": ["b", "é"], "label": 0}\n'
        '{"ctx": "", "endings": ["a", "b"], "label": 0}'
    )
    with pytest.raises(InvalidQuestions) as caught:
        read_questions(path, CharTokenizer("ab "), 8)
    assert "line 1: the character 'é'" in str(caught.value)
    assert "line 2: 'ctx' is empty" in str(caught.value)
