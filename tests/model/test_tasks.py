"""A task by name, in `evaluate --task` and as a curve during the training."""

from __future__ import annotations

import hashlib
import json

import pytest

from job.metrics import read_metrics
from job.pretrained import TASKS, TaskData
from model import train
from serving import evaluate
from tests.file_server import serving
from tests.model.conftest import Lab


def test_a_task_is_a_result_and_a_curve(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The right answers are words of the text, the wrong ones have characters that it lacks."""
    right = {"ctx": "the cat", "endings": [" on the", " QZX#(!"], "label": 0}
    wrong = {**right, "label": 1}
    content = "\n".join(map(json.dumps, [right, right, right, wrong])).encode()
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)
    with serving() as server:
        server.files["/hellaswag.jsonl"] = content
        digest, published = hashlib.sha256(content).hexdigest(), TASKS["hellaswag"].published
        data = TaskData(f"{server.url}/hellaswag.jsonl", digest, published)
        monkeypatch.setitem(TASKS, "hellaswag", data)
        words = ["max_steps=40", "eval_tasks=[hellaswag]", "eval_task_questions=3"]
        assert train.main([str(lab.recipe), *words, "--name", "run"]) == 0
        lines = read_metrics(lab.run_folder("run") / "metrics.jsonl")
        assert [line for line in lines if line["kind"] == "task"] == [
            {"kind": "task", "step": step, "hellaswag": 1.0} for step in (20, 40)
        ]
        capsys.readouterr()
        assert evaluate.main(["--name", "run", "--task", "hellaswag", "--json"]) == 0
        assert len(server.requests) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["step"], found["questions"]) == ("hellaswag", 40, 4)
    assert found["accuracy"] == found["accuracy_normalised"] == 0.75
    assert found["GPT-2 124M"] == 0.2955
