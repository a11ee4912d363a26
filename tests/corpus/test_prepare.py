"""python -m corpus.prepare: arguments, output and exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from corpus import DataError
from corpus.prepare import ensure_prepared, main
from job.arguments import argument_parser, find_recipe, load_recipe, parse
from job.exit_status import RecipeError
from job.paths import VolumePaths
from job.recipe import load

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "f.txt"
    path.write_text("To be, or not to be\n" * 500)
    return path


def test_local_copy_replaces_the_url(
    text: Path, volumes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shakespeare_char", "--source", str(text), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["train_tokens"] == 9000
    assert err == f"{volumes}/data/shakespeare_char: 9,000 training and 1,000 validation tokens\n"
    assert main(["shakespeare_char"]) == 0
    assert "is already prepared, from " + str(text) in capsys.readouterr().err
    recipe = load(find_recipe("shakespeare_char_cpu"))
    assert ensure_prepared(recipe, VolumePaths.current()).val_tokens == 1000
    overrides = ["lr=1", "data.source=mine.txt"]  # a different text from the recipe's
    with pytest.raises(DataError, match=r"source was .*f\.txt, now mine\.txt"):
        ensure_prepared(
            load(find_recipe("shakespeare_char_cpu"), overrides), VolumePaths.current(), overrides
        )
    assert main(["shakespeare_char", "--source=other"]) == 1
    assert "source was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["shakespear_char"], "did you mean 'shakespeare_char'?"),
        (["quickstart", "vall_fraction=1"], "did you mean 'data.val_fraction'?"),
        (["quickstart", "val_fraction=2"], "too large"),
        (["fineweb10B", "val_fraction=0.5"], "takes only --shards"),
    ],
)
def test_error_is_one_line(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "argv", [["--lr", "3"], ["a", "b"], ["--sorce=x", "--wat"], ["--shards", "many"]]
)
def test_an_invalid_argument_shows_the_usage(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(argv)
    assert exit.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_overrides_are_accepted_anywhere_with_or_without_dashes() -> None:
    arguments = parse(
        argument_parser("x", ""), ["lr=1e-3", "--json", "quickstart", "--train.min_lr=1e-4"]
    )
    assert arguments.json
    assert arguments.recipe == "quickstart"
    train = load_recipe(arguments).train
    assert (train.lr, train.min_lr) == (1e-3, 1e-4)
    assert parse(argument_parser("x", ""), []).recipe == "quickstart"


def test_a_recipe_is_a_path_or_a_name(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data: {dataset: d}")
    assert find_recipe(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    assert (
        find_recipe("quickstart")
        == find_recipe("quickstart.yaml")
        == CHECKOUT / "configs" / "quickstart.yaml"
    )
    with pytest.raises(RecipeError, match=r"use one of .*quickstart,"):
        find_recipe("zzz")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_command_and_the_next_resumes(
    tmp_path: Path, number: signal.Signals
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(f'{{"text": "{"some words and more " * 50}"}}\n' * 30_000)
    argv = [
        sys.executable,
        "-m",
        "corpus.prepare",
        "tokenizer=bytes",
        "split=tail",
        "--source",
        str(source),
    ]
    # A pipe gets lines instead of a bar. Send the signal when the first shard exists.
    process = subprocess.Popen(
        [*argv, "shard_tokens=1000000"], cwd=CHECKOUT, stderr=subprocess.PIPE, text=True
    )
    shard = (
        Path(os.environ["DATA_PATH"])
        / "python_stdlib"
        / ".preparing"
        / "python_stdlib_train_000001.bin"
    )
    while not shard.exists() and process.poll() is None:
        pass
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 101
    # A busy machine takes longer than the interval between lines of progress.
    lines = [line for line in err.splitlines() if not line.endswith(("%", " tokens"))]
    assert lines == ["interrupted; run the same command to resume"]
    done = subprocess.run(
        [*argv, "shard_tokens=1000000"], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stderr.startswith("resuming from ")
    assert done.stdout == ""
