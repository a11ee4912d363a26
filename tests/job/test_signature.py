"""A signature is read from the file without running it, with the types of the parameters."""

from __future__ import annotations

from pathlib import Path

import pytest

from job.signature import ExperimentError, Signature, read_signature

FILE = """\
import missing_module
from typing import Literal, Optional

def train(
    output_dir=".", lr: float = 1e-3, steps: int = 1000,
    variant: Literal["gpt2", "modern"] = "gpt2", compile: bool = False,
    note: Optional[str] = None, layers: "int | None" = 4, width=64,
    tokens: int = 1 << 20, folder: Path = None, *, tag: str = "x",
) -> dict:
    return {}
"""


@pytest.fixture
def signature(tmp_path: Path) -> Signature:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return read_signature(path)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("lr=3e-4", 3e-4),
        ("lr=1", 1.0),
        ("--lr=0.5", 0.5),
        ("steps=10", 10),
        ("variant=modern", "modern"),
        ("compile=yes", True),
        ("compile=0", False),
        ("note=none", None),
        ("note=a = b", "a = b"),
        ("layers=none", None),
        ("layers=6", 6),
        ("width=0.5", 0.5),
        ("tokens=4", 4),
        ("tag=5", "5"),
    ],
)
def test_argument_becomes_a_value_of_its_type(
    signature: Signature, word: str, value: object
) -> None:
    (found,) = signature.values([word]).values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lrr=1", "mine.py has no parameter 'lrr'; did you mean 'lr'?"),
        ("zzzzzz=1", "has no parameter 'zzzzzz'; it takes lr, steps, variant"),
        ("lr=fast", "lr: expected a number, got 'fast'"),
        ("lr=nan", "lr: expected a number, got 'nan'"),
        ("steps=1.5", "steps: expected an integer, got '1.5'"),
        ("steps=none", "steps: expected an integer, got 'none'"),
        (
            "variant=modem",
            "variant: expected 'gpt2' or 'modern', got 'modem'; did you mean 'modern'?",
        ),
        ("compile=maybe", "compile: expected true or false, got 'maybe'"),
        ("folder=/tmp", "folder is a Path, which can't be set on the command line"),
        ("output_dir=x", "the runner sets output_dir; use --name to choose the run's folder"),
        ("lr", "expected key=value"),
    ],
)
def test_error_is_named(signature: Signature, word: str, message: str) -> None:
    with pytest.raises(ExperimentError) as error:
        signature.values([word])
    assert message in str(error.value)
    assert error.value.status == 2


def test_defaults_complete_the_arguments(signature: Signature) -> None:
    whole = signature.complete(signature.values(["lr=1"]))
    assert whole["lr"] == 1.0
    assert whole["variant"] == "gpt2"
    assert whole["tokens"] == "1 << 20"  # the file is not executed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "no function train at the top level"),
        ("def train(output_dir='.'):\n    return {\n", ":2: not valid Python"),
        ("def train(lr=1):\n    return {}\n", ":1: train() lacks output_dir"),
    ],
)
def test_file_that_is_not_an_experiment(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ExperimentError, match=r"mine\.py") as error:
        read_signature(path)
    assert message in str(error.value)


def test_a_parameter_without_a_default_must_be_given(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def train(output_dir, lr: float): ...\n")
    signature = read_signature(path)
    with pytest.raises(ExperimentError, match="no default for lr; set lr=VALUE"):
        signature.values([])
    assert signature.values(["lr=1"]) == {"lr": 1.0}


def test_keyword_arguments_take_any_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def train(output_dir='.', **settings): ...\n")
    assert read_signature(path).values(["a=1", "b=x", "c=true"]) == {"a": 1, "b": "x", "c": True}
