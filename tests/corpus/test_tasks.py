"""Tasks by name: their download, the prompts of CORE, and scores of a known network."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from corpus import DataError
from corpus.tasks import Question, Score, fetch, load_tasks, scores
from corpus.tokenizers import ByteTokenizer
from job.pretrained import TASKS, TaskData
from tests.file_server import FileServer, serving

BYTES = ByteTokenizer()
HELLASWAG = [
    {"ctx": "A cat", "endings": ["sat", "flew"], "label": 0},
    {"ctx": "A dog", "endings": ["flew", "ran"], "label": 1},
]
CHOICES = [{"query": f"Q{n}", "choices": ["no", "yes"], "gold": n % 2} for n in range(4)]
SCHEMA = [
    {"context_options": [f"The {n}", f"A {n}"], "continuation": "is here", "gold": 1}
    for n in range(3)
]
LANGUAGE = [{"context": f"say {n} ", "continuation": f"word{n}"} for n in range(2)]


def bundle() -> bytes:
    """Return a CORE bundle of three tasks, one of each kind."""
    config = [
        ("choices", "multiple_choice", 1, {"continuation_delimiter": ": "}),
        ("schema", "schema", 0, {}),
        ("language", "language_modeling", 5, {}),
    ]
    tasks = [
        {
            "label": label,
            "dataset_uri": f"some/{label}.jsonl",
            "num_fewshot": [shots],
            "icl_task_type": kind,
            **more,
        }
        for label, kind, shots, more in config
    ]
    with ZipFile(content := io.BytesIO(), "w") as archive:
        archive.writestr("eval_bundle/core.yaml", json.dumps({"icl_tasks": tasks}))
        table = "Eval Task,Random baseline\nchoices,50\nschema,20\nlanguage,0\n"
        archive.writestr("eval_bundle/eval_meta_data.csv", table)
        for label, items in (("choices", CHOICES), ("schema", SCHEMA), ("language", LANGUAGE)):
            text = "".join(json.dumps(item) + "\n" for item in items)
            archive.writestr(f"eval_bundle/eval_data/some/{label}.jsonl", text)
    return content.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Serve both tasks as small files, and expect their digests."""
    with serving() as files:
        files.files["/hellaswag_val.jsonl"] = "\n".join(map(json.dumps, HELLASWAG)).encode()
        files.files["/eval_bundle.zip"] = bundle()
        for name, path in (("hellaswag", "/hellaswag_val.jsonl"), ("core", "/eval_bundle.zip")):
            digest = hashlib.sha256(files.files[path]).hexdigest()
            data = TaskData(files.url + path, digest, TASKS[name].published)
            monkeypatch.setitem(TASKS, name, data)
        yield files


def test_data_is_downloaded_once_and_checked(server: FileServer, tmp_path: Path) -> None:
    path = fetch("hellaswag", tmp_path)
    assert path == tmp_path / "tasks" / "hellaswag_val.jsonl"
    assert fetch("hellaswag", tmp_path) == path
    assert len(server.requests) == 1
    path.write_bytes(b"{}")  # damaged
    fetch("hellaswag", tmp_path)
    assert len(server.requests) == 2
    path.unlink()
    server.files["/hellaswag_val.jsonl"] += b"\n"
    with pytest.raises(DataError, match=r"/hellaswag_val\.jsonl: its SHA-256 is .*, expected "):
        fetch("hellaswag", tmp_path)
    assert list((tmp_path / "tasks").iterdir()) == []


def text(tokens: list[int]) -> str:
    return bytes(token for token in tokens if token < 256).decode()


def test_prompts_of_core(server: FileServer, tmp_path: Path) -> None:
    choices, schema, language = load_tasks("core", tmp_path, BYTES, 64)
    assert [(task.name, task.baseline) for task in (choices, schema, language)] == [
        ("choices", 0.5),
        ("schema", 0.2),
        ("language", 0.0),
    ]
    order = [*CHOICES]
    random.Random(1337).shuffle(order)
    for number, (question, item) in enumerate(zip(choices.questions, order, strict=True)):
        others = [at for at in range(4) if at != number]
        example: Any = order[random.Random(1234 + number).sample(others, 1)[0]]
        before = f"{example['query']}: {example['choices'][example['gold']]}\n\n"
        assert text(question.context) == f"{before}{item['query']}: "
        assert [text(ending) for ending in question.endings] == ["no", "yes"]
        assert question.answer == item["gold"]
        assert question.scored is None
    first = schema.questions[0]
    assert first.context == []
    assert {text(ending)[:3] for ending in first.endings} == {
        "The",
        f"A {text(first.endings[1])[2]}",
    }
    assert first.scored == len(" 0 is here")
    assert first.answer == 1
    question = language.questions[0]  # with all others as examples, which is one
    number = text(question.endings[0])[-1]
    other = "1" if number == "0" else "0"
    assert text(question.context) == f"say {other} word{other}\n\nsay {number}"
    assert [text(ending) for ending in question.endings] == [f" word{number}"]
    (limited, *_) = load_tasks("core", tmp_path, BYTES, 64, limit=2)
    assert len(limited.questions) == 2
    assert len(server.requests) == 1


def test_core_is_the_mean_of_the_centered_accuracies(server: FileServer, tmp_path: Path) -> None:
    """The network always prefers the second ending, and predicts one of two words."""
    tasks = load_tasks("core", tmp_path, BYTES, 64)

    def measure(questions: list[Question]) -> list[list[Score]]:
        if len(questions[0].endings) == 1:
            return [[Score(1.0, 4, is_greedy=number == 0)] for number in range(len(questions))]
        return [[Score(4.0, 2), Score(5.0, 4)] for _ in questions]

    found = scores("core", tasks, measure)
    accuracies = {"choices": 0.5, "schema": 1.0, "language": 0.5}
    assert found == {"core": (0.0 + 1.0 + 0.5) / 3, "questions": 9, **accuracies}
    hellaswag = scores("hellaswag", load_tasks("hellaswag", tmp_path, BYTES, 64), measure)
    assert (hellaswag["accuracy"], hellaswag["accuracy_normalised"]) == (0.5, 0.5)
    (path,) = tmp_path.glob("tasks/*.zip")
    assert path.is_file()


def test_a_bundle_with_other_content_is_an_error(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"PK no archive"
    server.files["/eval_bundle.zip"] = content
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(TASKS, "core", TaskData(f"{server.url}/eval_bundle.zip", digest, {}))
    with pytest.raises(DataError, match=r"eval_bundle\.zip: not the data of CORE"):
        load_tasks("core", tmp_path, BYTES, 64)
