"""The command `evaluate`: multiple-choice questions, and the loss on the validation set."""

from __future__ import annotations

import json
import math

import pytest

from job.exit_status import ExitStatus
from tests.model.conftest import Lab


def test_evaluate_answers_questions_and_reports_bits_per_byte(lab: Lab) -> None:
    lab.train("run", "max_steps=40")
    path = lab.folder / "questions.jsonl"
    # The right answers are words of the text, the wrong ones have characters that it lacks.
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
