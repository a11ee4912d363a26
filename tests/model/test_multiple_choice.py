"""Multiple choice: batched losses against one ending at a time, accuracies, invalid lines."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch

from corpus.tokenizers import ByteTokenizer, CharTokenizer
from job.exit_status import ExitStatus
from model.gpt import GPT
from model.multiple_choice import (
    InvalidQuestions,
    Question,
    accuracies,
    ending_losses,
    read_questions,
)
from tests.model.conftest import Lab
from tests.model.test_gpt import network

BYTES = ByteTokenizer()


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
        assert [[n for _, n in of] for of in found] == [[n for _, n in of] for of in brute]
        for of, expected in zip(found, brute, strict=True):
            assert [loss for loss, _ in of] == pytest.approx(
                [loss for loss, _ in expected], rel=1e-4
            )


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


def test_evaluate_answers_questions_and_reports_bits_per_byte(lab: Lab) -> None:
    lab.train("run", "max_steps=40")
    path = lab.folder / "questions.jsonl"
    # Words of the text against characters that it never contains.
    line = {"context": "the cat", "choices": [" on the", " QZX#(!"], "answer": 0}
    path.write_text(f"{json.dumps(line)}\n" * 3)
    out, _ = lab.run("evaluate", "--name", "run", "--multiple-choice", str(path), "--json")
    result = json.loads(out)
    assert (result["questions"], result["accuracy"], result["accuracy_stderr"]) == (3, 1.0, 0.0)
    path.write_text("{}\n")
    _, err = lab.run(
        "evaluate", "--name", "run", "--multiple-choice", str(path), status=ExitStatus.ERROR
    )
    assert "line 1: missing 'context'" in err

    out, _ = lab.run("evaluate", "--name", "run", "--json")
    result = json.loads(out)
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    # Each token is one byte.
    assert result["bits_per_byte"] == pytest.approx(result["loss"] / math.log(2))
